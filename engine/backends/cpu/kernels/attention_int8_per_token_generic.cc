// Attention over int8 pages, on any CPU.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {
namespace {

constexpr char kName[] = "attention_int8_per_token_generic";

std::string Refuse(const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "generic", cpu); }

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout) {
  return BindKvPages(layout, KvFormat::kInt8, kGenericTier, kName);
}

}  // namespace

extern const AttentionKernelDef kAttentionInt8PerTokenGeneric;
const AttentionKernelDef kAttentionInt8PerTokenGeneric = {
    .name = kName, .kv_strategy = "int8_per_token", .rank = 0, .refuse = Refuse, .bind = Bind};

}  // namespace sage::cpu
