// Attention over f32 pages, on any CPU.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "attention_f32_generic";

std::string Refuse(const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "generic", cpu); }

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout) {
  return BindKvPages(layout, KvFormat::kF32, kGenericTier, kName);
}

}  // namespace

extern const AttentionKernelDef kAttentionF32Generic;
const AttentionKernelDef kAttentionF32Generic = {
    .name = kName, .kv_strategy = "f32", .rank = 0, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
