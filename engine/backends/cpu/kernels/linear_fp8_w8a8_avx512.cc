// Linear layers with fp8 codes in panels with activations rounded to e4m3, on AVX-512.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearFp8W8a8Avx512;
const LinearKernelDef kLinearFp8W8a8Avx512 = {
    .name = "linear_fp8_w8a8_avx512",
    .strategy = "fp8_w8a8",
    .rank = 20,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("avx512", cpu);
          return tier.empty() ? RefuseSizes(query) : tier;
        },
    .bind =
        [](LinearWeight weight, ThreadPool& threads) {
          return BindFloatPanels(std::move(weight), threads, kAvx512Tier, std::string(kLinearFp8W8a8Avx512.name));
        },
};

}  // namespace sage::cpu
