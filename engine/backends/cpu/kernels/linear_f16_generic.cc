// Linear layers with f16 weights read in place, on any CPU.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearF16Generic;
const LinearKernelDef kLinearF16Generic = {
    .name = "linear_f16_generic",
    .strategy = "f16",
    .rank = 0,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("generic", cpu);
          return tier.empty() ? RefuseSizes(query) : tier;
        },
    .bind = [](LinearWeight weight,
               ThreadPool&) { return BindDense(std::move(weight), kGenericTier, std::string(kLinearF16Generic.name)); },
};

}  // namespace sage::cpu
