// Linear layers with 8-bit codes in panels with int16 activations, on AVX-512 VNNI.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearInt8W8a16Avx512;
const LinearKernelDef kLinearInt8W8a16Avx512 = {
    .name = "linear_int8_w8a16_avx512",
    .strategy = "int8_w8a16",
    .rank = 20,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("avx512", cpu);
          return tier.empty() ? RefuseSizes(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool& threads) {
          return BindPanels(std::move(weight), /*nibbles=*/false, threads, kAvx512Tier,
                            std::string(kLinearInt8W8a16Avx512.name));
        },
};

}  // namespace sage::cpu
