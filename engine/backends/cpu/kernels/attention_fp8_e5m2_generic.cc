// Attention over e5m2 pages, on any CPU.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "attention_fp8_e5m2_generic";

std::string Refuse(const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "generic", cpu); }

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout) {
  return BindKvPages(layout, KvFormat::kE5M2, kGenericTier, kName);
}

}  // namespace

extern const AttentionKernelDef kAttentionFp8E5m2Generic;
const AttentionKernelDef kAttentionFp8E5m2Generic = {
    .name = kName, .kv_strategy = "fp8_e5m2", .rank = 0, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
