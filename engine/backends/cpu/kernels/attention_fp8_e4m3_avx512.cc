// Attention over e4m3 pages, on AVX-512 VNNI.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {

extern const AttentionKernelDef kAttentionFp8E4m3Avx512;
const AttentionKernelDef kAttentionFp8E4m3Avx512 = {
    .name = "attention_fp8_e4m3_avx512",
    .kv_strategy = "fp8_e4m3",
    .rank = 20,
    .refuse = [](const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx512", cpu); },
    .bind =
        [](const KvLayout& layout) {
          return BindKvPages(layout, KvFormat::kE4M3, kAvx512Tier, std::string(kAttentionFp8E4m3Avx512.name));
        },
};

}  // namespace sage::cpu
