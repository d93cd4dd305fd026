// Linear layers with FP4 codes in panels with f32 activations, on AVX-512.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearFp4W4a16Avx512;
const LinearKernelDef kLinearFp4W4a16Avx512 = {
    .name = "linear_fp4_w4a16_avx512",
    .strategy = "fp4_w4a16",
    .rank = 20,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("avx512", cpu);
          return tier.empty() ? RefuseSizes(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool& threads) {
          return BindFloatPanels(std::move(weight), threads, kAvx512Tier, std::string(kLinearFp4W4a16Avx512.name));
        },
};

}  // namespace sage::cpu
