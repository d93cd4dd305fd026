// Linear layers with ggml Q4_1 blocks with int16 activations, on any CPU.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearGgufQ41Generic;
const LinearKernelDef kLinearGgufQ41Generic = {
    .name = "linear_gguf_q4_1_generic",
    .strategy = "gguf_q4_1",
    .rank = 0,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("generic", cpu);
          return tier.empty() ? RefuseBlocks(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool& threads) {
          return BindBlocks(std::move(weight), threads, kGenericTier, std::string(kLinearGgufQ41Generic.name));
        },
};

}  // namespace sage::cpu
