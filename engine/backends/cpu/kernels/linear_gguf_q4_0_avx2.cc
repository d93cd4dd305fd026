// Linear layers with ggml Q4_0 blocks with int16 activations, on AVX2.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "linear_gguf_q4_0_avx2";

std::string Refuse(const LinearKernelQuery& query, const CpuFeatures& cpu) {
  const std::string tier = RefuseTier("avx2", cpu);
  return tier.empty() ? RefuseBlocks(query) : tier;
}

absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(LinearWeight weight, ThreadPool& threads) {
  return BindBlocks(std::move(weight), threads, kAvx2Tier, kName);
}

}  // namespace

extern const LinearKernelDef kLinearGgufQ40Avx2;
const LinearKernelDef kLinearGgufQ40Avx2 = {
    .name = kName, .strategy = "gguf_q4_0", .rank = 10, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
