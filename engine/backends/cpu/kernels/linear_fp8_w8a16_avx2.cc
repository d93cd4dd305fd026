// Linear layers with fp8 codes in panels with f32 activations, on AVX2.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearFp8W8a16Avx2;
const LinearKernelDef kLinearFp8W8a16Avx2 = {
    .name = "linear_fp8_w8a16_avx2",
    .strategy = "fp8_w8a16",
    .rank = 10,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("avx2", cpu);
          return tier.empty() ? RefuseSizes(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool& threads) {
          return BindFloatPanels(std::move(weight), threads, kAvx2Tier, std::string(kLinearFp8W8a16Avx2.name));
        },
};

}  // namespace sage::cpu
