// Attention over bf16 pages, on AVX2.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "attention_bf16_avx2";

std::string Refuse(const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx2", cpu); }

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout) {
  return BindKvPages(layout, KvFormat::kBF16, kAvx2Tier, kName);
}

}  // namespace

extern const AttentionKernelDef kAttentionBf16Avx2;
const AttentionKernelDef kAttentionBf16Avx2 = {
    .name = kName, .kv_strategy = "bf16", .rank = 10, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
