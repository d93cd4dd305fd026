// Attention over e5m2 pages, on AVX-512 VNNI.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {

extern const AttentionKernelDef kAttentionFp8E5m2Avx512;
const AttentionKernelDef kAttentionFp8E5m2Avx512 = {
    .name = "attention_fp8_e5m2_avx512",
    .kv_strategy = "fp8_e5m2",
    .rank = 20,
    .refuse = [](const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx512", cpu); },
    .bind =
        [](const KvLayout& layout) {
          return BindKvPages(layout, KvFormat::kE5M2, kAvx512Tier, std::string(kAttentionFp8E5m2Avx512.name));
        },
};

}  // namespace sage::cpu
