// Attention over bf16 pages, on AVX-512 VNNI.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {

extern const AttentionKernelDef kAttentionBf16Avx512;
const AttentionKernelDef kAttentionBf16Avx512 = {
    .name = "attention_bf16_avx512",
    .kv_strategy = "bf16",
    .rank = 20,
    .refuse = [](const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx512", cpu); },
    .bind =
        [](const KvLayout& layout) {
          return BindKvPages(layout, KvFormat::kBF16, kAvx512Tier, std::string(kAttentionBf16Avx512.name));
        },
};

}  // namespace sage::cpu
