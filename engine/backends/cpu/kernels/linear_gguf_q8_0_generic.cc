// Linear layers with ggml Q8_0 blocks with int16 activations, on any CPU.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearGgufQ80Generic;
const LinearKernelDef kLinearGgufQ80Generic = {
    .name = "linear_gguf_q8_0_generic",
    .strategy = "gguf_q8_0",
    .rank = 0,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("generic", cpu);
          return tier.empty() ? RefuseBlocks(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool& threads) {
          return BindBlocks(std::move(weight), threads, kGenericTier, std::string(kLinearGgufQ80Generic.name));
        },
};

}  // namespace sage::cpu
