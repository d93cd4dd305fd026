// Attention over f32 pages, on any CPU.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {

extern const AttentionKernelDef kAttentionF32Generic;
const AttentionKernelDef kAttentionF32Generic = {
    .name = "attention_f32_generic",
    .kv_strategy = "f32",
    .rank = 0,
    .refuse = [](const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "generic", cpu); },
    .bind =
        [](const KvLayout& layout) {
          return BindKvPages(layout, KvFormat::kF32, kGenericTier, std::string(kAttentionF32Generic.name));
        },
};

}  // namespace sage::cpu
