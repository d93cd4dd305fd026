// Linear layers with fp8 codes in panels with activations rounded to e4m3, on AVX-512.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "linear_fp8_w8a8_avx512";

std::string Refuse(const LinearKernelQuery& query, const CpuFeatures& cpu) {
  const std::string tier = RefuseTier("avx512", cpu);
  return tier.empty() ? RefuseSizes(query) : tier;
}

absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(LinearWeight weight, ThreadPool& threads) {
  return BindFloatPanels(std::move(weight), threads, kAvx512Tier, kName);
}

}  // namespace

extern const LinearKernelDef kLinearFp8W8a8Avx512;
const LinearKernelDef kLinearFp8W8a8Avx512 = {
    .name = kName, .strategy = "fp8_w8a8", .rank = 20, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
