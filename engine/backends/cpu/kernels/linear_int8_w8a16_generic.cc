// Linear layers with 8-bit codes in panels with int16 activations, on any CPU.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearInt8W8a16Generic;
const LinearKernelDef kLinearInt8W8a16Generic = {
    .name = "linear_int8_w8a16_generic",
    .strategy = "int8_w8a16",
    .rank = 0,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("generic", cpu);
          return tier.empty() ? RefuseSizes(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool& threads) {
          return BindPanels(std::move(weight), /*nibbles=*/false, threads, kGenericTier,
                            std::string(kLinearInt8W8a16Generic.name));
        },
};

}  // namespace sage::cpu
