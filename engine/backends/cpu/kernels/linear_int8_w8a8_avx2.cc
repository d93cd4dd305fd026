// Linear layers with 8-bit codes in panels with int8 activations, on AVX2.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "linear_int8_w8a8_avx2";

std::string Refuse(const LinearKernelQuery& query, const CpuFeatures& cpu) {
  const std::string tier = RefuseTier("avx2", cpu);
  return tier.empty() ? RefusePanels(query) : tier;
}

absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(LinearWeight weight, ThreadPool& threads) {
  return BindPanels(std::move(weight), /*nibbles=*/false, threads, kAvx2Tier, kName);
}

}  // namespace

extern const LinearKernelDef kLinearInt8W8a8Avx2;
const LinearKernelDef kLinearInt8W8a8Avx2 = {
    .name = kName, .strategy = "int8_w8a8", .rank = 10, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
