// Linear layers with bf16 weights read in place, on AVX2.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "linear_bf16_avx2";

std::string Refuse(const LinearKernelQuery& query, const CpuFeatures& cpu) {
  const std::string tier = RefuseTier("avx2", cpu);
  return tier.empty() ? RefuseSizes(query) : tier;
}

absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(LinearWeight weight, ThreadPool&) {
  return BindDense(std::move(weight), kAvx2Tier, kName);
}

}  // namespace

extern const LinearKernelDef kLinearBf16Avx2;
const LinearKernelDef kLinearBf16Avx2 = {.name = kName, .strategy = "bf16", .rank = 10, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
