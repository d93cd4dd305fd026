// Attention over bf16 pages, on AVX2.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {

extern const AttentionKernelDef kAttentionBf16Avx2;
const AttentionKernelDef kAttentionBf16Avx2 = {
    .name = "attention_bf16_avx2",
    .kv_strategy = "bf16",
    .rank = 10,
    .refuse = [](const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx2", cpu); },
    .bind =
        [](const KvLayout& layout) {
          return BindKvPages(layout, KvFormat::kBF16, kAvx2Tier, std::string(kAttentionBf16Avx2.name));
        },
};

}  // namespace sage::cpu
