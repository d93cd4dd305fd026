// Attention over int8 pages, on AVX-512 VNNI.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {

extern const AttentionKernelDef kAttentionInt8PerTokenAvx512;
const AttentionKernelDef kAttentionInt8PerTokenAvx512 = {
    .name = "attention_int8_per_token_avx512",
    .kv_strategy = "int8_per_token",
    .rank = 20,
    .refuse = [](const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx512", cpu); },
    .bind =
        [](const KvLayout& layout) {
          return BindKvPages(layout, KvFormat::kInt8, kAvx512Tier, std::string(kAttentionInt8PerTokenAvx512.name));
        },
};

}  // namespace sage::cpu
