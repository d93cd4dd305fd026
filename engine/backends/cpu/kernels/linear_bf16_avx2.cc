// Linear layers with bf16 weights read in place, on AVX2.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearBf16Avx2;
const LinearKernelDef kLinearBf16Avx2 = {
    .name = "linear_bf16_avx2",
    .strategy = "bf16",
    .rank = 10,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("avx2", cpu);
          return tier.empty() ? RefuseSizes(query) : tier;
        },
    .bind = [](LinearWeight weight,
               ThreadPool&) { return BindDense(std::move(weight), kAvx2Tier, std::string(kLinearBf16Avx2.name)); },
};

}  // namespace sage::cpu
