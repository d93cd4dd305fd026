// Attention over e4m3 pages, on any CPU.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {

extern const AttentionKernelDef kAttentionFp8E4m3Generic;
const AttentionKernelDef kAttentionFp8E4m3Generic = {
    .name = "attention_fp8_e4m3_generic",
    .kv_strategy = "fp8_e4m3",
    .rank = 0,
    .refuse = [](const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "generic", cpu); },
    .bind =
        [](const KvLayout& layout) {
          return BindKvPages(layout, KvFormat::kE4M3, kGenericTier, std::string(kAttentionFp8E4m3Generic.name));
        },
};

}  // namespace sage::cpu
