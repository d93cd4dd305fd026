// Linear layers with E2M1 codes in panels with f32 activations, on any CPU.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearMxfp4W4a16Generic;
const LinearKernelDef kLinearMxfp4W4a16Generic = {
    .name = "linear_mxfp4_w4a16_generic",
    .strategy = "mxfp4_w4a16",
    .rank = 0,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("generic", cpu);
          return tier.empty() ? RefuseSizes(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool& threads) {
          return BindFloatPanels(std::move(weight), threads, kGenericTier, std::string(kLinearMxfp4W4a16Generic.name));
        },
};

}  // namespace sage::cpu
