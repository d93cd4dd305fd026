// Attention over bf16 pages, on any CPU.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "attention_bf16_generic";

std::string Refuse(const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "generic", cpu); }

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout) {
  return BindKvPages(layout, KvFormat::kBF16, kGenericTier, kName);
}

}  // namespace

extern const AttentionKernelDef kAttentionBf16Generic;
const AttentionKernelDef kAttentionBf16Generic = {
    .name = kName, .kv_strategy = "bf16", .rank = 0, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
