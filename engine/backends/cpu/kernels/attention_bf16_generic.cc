// Attention over bf16 pages, on any CPU.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {

extern const AttentionKernelDef kAttentionBf16Generic;
const AttentionKernelDef kAttentionBf16Generic = {
    .name = "attention_bf16_generic",
    .kv_strategy = "bf16",
    .rank = 0,
    .refuse = [](const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "generic", cpu); },
    .bind =
        [](const KvLayout& layout) {
          return BindKvPages(layout, KvFormat::kBF16, kGenericTier, std::string(kAttentionBf16Generic.name));
        },
};

}  // namespace sage::cpu
