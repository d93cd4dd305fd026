// Attention over int8 pages, on any CPU.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {

extern const AttentionKernelDef kAttentionInt8PerTokenGeneric;
const AttentionKernelDef kAttentionInt8PerTokenGeneric = {
    .name = "attention_int8_per_token_generic",
    .kv_strategy = "int8_per_token",
    .rank = 0,
    .refuse = [](const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "generic", cpu); },
    .bind =
        [](const KvLayout& layout) {
          return BindKvPages(layout, KvFormat::kInt8, kGenericTier, std::string(kAttentionInt8PerTokenGeneric.name));
        },
};

}  // namespace sage::cpu
