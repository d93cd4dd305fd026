// Linear layers with ggml Q4_1 blocks with int16 activations, on AVX-512 VNNI.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearGgufQ41Avx512;
const LinearKernelDef kLinearGgufQ41Avx512 = {
    .name = "linear_gguf_q4_1_avx512",
    .strategy = "gguf_q4_1",
    .rank = 20,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("avx512", cpu);
          return tier.empty() ? RefuseBlocks(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool& threads) {
          return BindBlocks(std::move(weight), threads, kAvx512Tier, std::string(kLinearGgufQ41Avx512.name));
        },
};

}  // namespace sage::cpu
