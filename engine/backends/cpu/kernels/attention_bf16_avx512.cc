// Attention over bf16 pages, on AVX-512 VNNI.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "attention_bf16_avx512";

std::string Refuse(const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx512", cpu); }

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout) {
  return BindKvPages(layout, KvFormat::kBF16, kAvx512Tier, kName);
}

}  // namespace

extern const AttentionKernelDef kAttentionBf16Avx512;
const AttentionKernelDef kAttentionBf16Avx512 = {
    .name = kName, .kv_strategy = "bf16", .rank = 20, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
