// Linear layers with fp8 codes in panels with activations rounded to e4m3, on any CPU.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearFp8W8a8Generic;
const LinearKernelDef kLinearFp8W8a8Generic = {
    .name = "linear_fp8_w8a8_generic",
    .strategy = "fp8_w8a8",
    .rank = 0,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("generic", cpu);
          return tier.empty() ? RefuseSizes(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool& threads) {
          return BindFloatPanels(std::move(weight), threads, kGenericTier, std::string(kLinearFp8W8a8Generic.name));
        },
};

}  // namespace sage::cpu
