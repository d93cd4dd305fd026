// Linear layers with fp8 codes in panels with activations rounded to e4m3, on any CPU.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "linear_fp8_w8a8_generic";

std::string Refuse(const LinearKernelQuery& query, const CpuFeatures& cpu) {
  const std::string tier = RefuseTier("generic", cpu);
  return tier.empty() ? RefuseSizes(query) : tier;
}

absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(LinearWeight weight, ThreadPool& threads) {
  return BindFloatPanels(std::move(weight), threads, kGenericTier, kName);
}

}  // namespace

extern const LinearKernelDef kLinearFp8W8a8Generic;
const LinearKernelDef kLinearFp8W8a8Generic = {
    .name = kName, .strategy = "fp8_w8a8", .rank = 0, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
