// Linear layers with 4-bit codes in panels with int16 activations, on any CPU.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearInt4W4a16Generic;
const LinearKernelDef kLinearInt4W4a16Generic = {
    .name = "linear_int4_w4a16_generic",
    .strategy = "int4_w4a16",
    .rank = 0,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("generic", cpu);
          return tier.empty() ? RefuseSizes(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool& threads) {
          return BindPanels(std::move(weight), /*nibbles=*/true, threads, kGenericTier,
                            std::string(kLinearInt4W4a16Generic.name));
        },
};

}  // namespace sage::cpu
