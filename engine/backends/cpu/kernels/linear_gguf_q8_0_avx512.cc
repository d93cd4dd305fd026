// Linear layers with ggml Q8_0 blocks with int16 activations, on AVX-512 VNNI.
#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "linear_gguf_q8_0_avx512";

std::string Refuse(const LinearKernelQuery& query, const CpuFeatures& cpu) {
  const std::string tier = RefuseTier("avx512", cpu);
  return tier.empty() ? RefuseBlocks(query) : tier;
}

absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(LinearWeight weight, ThreadPool& threads) {
  return BindBlocks(std::move(weight), threads, kAvx512Tier, kName);
}

}  // namespace

extern const LinearKernelDef kLinearGgufQ80Avx512;
const LinearKernelDef kLinearGgufQ80Avx512 = {
    .name = kName, .strategy = "gguf_q8_0", .rank = 20, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
