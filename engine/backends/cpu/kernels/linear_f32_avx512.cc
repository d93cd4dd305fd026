// Linear layers with f32 weights read in place, on AVX-512 VNNI.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {

extern const LinearKernelDef kLinearF32Avx512;
const LinearKernelDef kLinearF32Avx512 = {
    .name = "linear_f32_avx512",
    .strategy = "f32",
    .rank = 20,
    .refuse =
        [](const LinearKernelQuery& query, const CpuFeatures& cpu) {
          const std::string tier = RefuseTier("avx512", cpu);
          return tier.empty() ? RefuseSizes(query) : tier;
        },
    .bind = [](LinearWeight weight,
               ThreadPool&) { return BindDense(std::move(weight), kAvx512Tier, std::string(kLinearF32Avx512.name)); },
};

}  // namespace sage::cpu
