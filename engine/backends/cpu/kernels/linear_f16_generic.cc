// Linear layers with f16 weights read in place, on any CPU.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "linear_f16_generic";

std::string Refuse(const LinearKernelQuery& query, const CpuFeatures& cpu) {
  const std::string tier = RefuseTier("generic", cpu);
  return tier.empty() ? RefuseSizes(query) : tier;
}

absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(LinearWeight weight, ThreadPool&) {
  return BindDense(std::move(weight), kGenericTier, kName);
}

}  // namespace

extern const LinearKernelDef kLinearF16Generic;
const LinearKernelDef kLinearF16Generic = {.name = kName, .strategy = "f16", .rank = 0, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
