// Linear layers with 4-bit codes in panels with int8 activations, on AVX-512 VNNI.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearInt4W4a8Avx512;
const LinearKernelDef kLinearInt4W4a8Avx512 = {
    .name = "linear_int4_w4a8_avx512",
    .strategy = "int4_w4a8",
    .rank = 20,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("avx512", cpu);
          return tier.empty() ? RefuseSizes(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool& threads) {
          return BindPanels(std::move(weight), /*nibbles=*/true, threads, kAvx512Tier,
                            std::string(kLinearInt4W4a8Avx512.name));
        },
};

}  // namespace sage::cpu
