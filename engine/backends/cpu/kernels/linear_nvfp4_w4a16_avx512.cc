// Linear layers with E2M1 codes and e4m3 scales in panels with f32 activations, on AVX-512.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "linear_nvfp4_w4a16_avx512";

std::string Refuse(const LinearKernelQuery& query, const CpuFeatures& cpu) {
  const std::string tier = RefuseTier("avx512", cpu);
  return tier.empty() ? RefuseSizes(query) : tier;
}

absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(LinearWeight weight, ThreadPool& threads) {
  return BindFloatPanels(std::move(weight), threads, kAvx512Tier, kName);
}

}  // namespace

extern const LinearKernelDef kLinearNvfp4W4a16Avx512;
const LinearKernelDef kLinearNvfp4W4a16Avx512 = {
    .name = kName, .strategy = "nvfp4_w4a16", .rank = 20, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
