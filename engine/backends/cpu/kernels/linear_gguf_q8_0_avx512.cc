// Linear layers with ggml Q8_0 blocks with int16 activations, on AVX-512 VNNI.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearGgufQ80Avx512;
const LinearKernelDef kLinearGgufQ80Avx512 = {
    .name = "linear_gguf_q8_0_avx512",
    .strategy = "gguf_q8_0",
    .rank = 20,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("avx512", cpu);
          return tier.empty() ? RefuseBlocks(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool& threads) {
          return BindBlocks(std::move(weight), threads, kAvx512Tier, std::string(kLinearGgufQ80Avx512.name));
        },
};

}  // namespace sage::cpu
