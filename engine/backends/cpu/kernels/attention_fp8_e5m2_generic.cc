// Attention over e5m2 pages, on any CPU.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {

extern const AttentionKernelDef kAttentionFp8E5m2Generic;
const AttentionKernelDef kAttentionFp8E5m2Generic = {
    .name = "attention_fp8_e5m2_generic",
    .kv_strategy = "fp8_e5m2",
    .rank = 0,
    .refuse = [](const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "generic", cpu); },
    .bind =
        [](const KvLayout& layout) {
          return BindKvPages(layout, KvFormat::kE5M2, kGenericTier, std::string(kAttentionFp8E5m2Generic.name));
        },
};

}  // namespace sage::cpu
