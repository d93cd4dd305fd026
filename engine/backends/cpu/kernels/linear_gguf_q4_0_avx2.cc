// Linear layers with ggml Q4_0 blocks with int16 activations, on AVX2.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearGgufQ40Avx2;
const LinearKernelDef kLinearGgufQ40Avx2 = {
    .name = "linear_gguf_q4_0_avx2",
    .strategy = "gguf_q4_0",
    .rank = 10,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("avx2", cpu);
          return tier.empty() ? RefuseBlocks(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool& threads) {
          return BindBlocks(std::move(weight), threads, kAvx2Tier, std::string(kLinearGgufQ40Avx2.name));
        },
};

}  // namespace sage::cpu
