// Linear layers with E2M1 codes and e4m3 scales in panels with f32 activations, on any CPU.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearNvfp4W4a16Generic;
const LinearKernelDef kLinearNvfp4W4a16Generic = {
    .name = "linear_nvfp4_w4a16_generic",
    .strategy = "nvfp4_w4a16",
    .rank = 0,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("generic", cpu);
          return tier.empty() ? RefuseSizes(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool& threads) {
          return BindFloatPanels(std::move(weight), threads, kGenericTier, std::string(kLinearNvfp4W4a16Generic.name));
        },
};

}  // namespace sage::cpu
