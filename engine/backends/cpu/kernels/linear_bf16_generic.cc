// Linear layers with bf16 weights read in place, on any CPU.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearBf16Generic;
const LinearKernelDef kLinearBf16Generic = {
    .name = "linear_bf16_generic",
    .strategy = "bf16",
    .rank = 0,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("generic", cpu);
          return tier.empty() ? RefuseSizes(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool&) {
          return BindDense(std::move(weight), kGenericTier, std::string(kLinearBf16Generic.name));
        },
};

}  // namespace sage::cpu
