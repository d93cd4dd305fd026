// Attention over e5m2 pages, on AVX2.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {

extern const AttentionKernelDef kAttentionFp8E5m2Avx2;
const AttentionKernelDef kAttentionFp8E5m2Avx2 = {
    .name = "attention_fp8_e5m2_avx2",
    .kv_strategy = "fp8_e5m2",
    .rank = 10,
    .refuse = [](const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx2", cpu); },
    .bind =
        [](const KvLayout& layout) {
          return BindKvPages(layout, KvFormat::kE5M2, kAvx2Tier, std::string(kAttentionFp8E5m2Avx2.name));
        },
};

}  // namespace sage::cpu
