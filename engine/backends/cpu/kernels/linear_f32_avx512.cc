// Linear layers with f32 weights read in place, on AVX-512 VNNI.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "linear_f32_avx512";

std::string Refuse(const LinearKernelQuery& query, const CpuFeatures& cpu) {
  const std::string tier = RefuseTier("avx512", cpu);
  return tier.empty() ? RefuseSizes(query) : tier;
}

absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(LinearWeight weight, ThreadPool&) {
  return BindDense(std::move(weight), kAvx512Tier, kName);
}

}  // namespace

extern const LinearKernelDef kLinearF32Avx512;
const LinearKernelDef kLinearF32Avx512 = {.name = kName, .strategy = "f32", .rank = 20, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
