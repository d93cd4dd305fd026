// Linear layers with fp8 codes in panels with f32 activations, on any CPU.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearFp8W8a16Generic;
const LinearKernelDef kLinearFp8W8a16Generic = {
    .name = "linear_fp8_w8a16_generic",
    .strategy = "fp8_w8a16",
    .rank = 0,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("generic", cpu);
          return tier.empty() ? RefuseSizes(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool& threads) {
          return BindFloatPanels(std::move(weight), threads, kGenericTier, std::string(kLinearFp8W8a16Generic.name));
        },
};

}  // namespace sage::cpu
