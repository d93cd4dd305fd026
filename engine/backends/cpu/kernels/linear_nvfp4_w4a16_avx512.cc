// Linear layers with E2M1 codes and e4m3 scales in panels with f32 activations, on AVX-512.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearNvfp4W4a16Avx512;
const LinearKernelDef kLinearNvfp4W4a16Avx512 = {
    .name = "linear_nvfp4_w4a16_avx512",
    .strategy = "nvfp4_w4a16",
    .rank = 20,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("avx512", cpu);
          return tier.empty() ? RefuseSizes(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool& threads) {
          return BindFloatPanels(std::move(weight), threads, kAvx512Tier, std::string(kLinearNvfp4W4a16Avx512.name));
        },
};

}  // namespace sage::cpu
