// Linear layers with f16 weights read in place, on AVX2.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearF16Avx2;
const LinearKernelDef kLinearF16Avx2 = {
    .name = "linear_f16_avx2",
    .strategy = "f16",
    .rank = 10,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("avx2", cpu);
          return tier.empty() ? RefuseSizes(query) : tier;
        },
    .bind = [](LinearWeight weight,
               ThreadPool&) { return BindDense(std::move(weight), kAvx2Tier, std::string(kLinearF16Avx2.name)); },
};

}  // namespace sage::cpu
