// Attention over int8 pages, on AVX2.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "attention_int8_per_token_avx2";

std::string Refuse(const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx2", cpu); }

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout) {
  return BindKvPages(layout, KvFormat::kInt8, kAvx2Tier, kName);
}

}  // namespace

extern const AttentionKernelDef kAttentionInt8PerTokenAvx2;
const AttentionKernelDef kAttentionInt8PerTokenAvx2 = {
    .name = kName, .kv_strategy = "int8_per_token", .rank = 10, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
