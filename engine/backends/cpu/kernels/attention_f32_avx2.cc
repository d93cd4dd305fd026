// Attention over f32 pages, on AVX2.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {

extern const AttentionKernelDef kAttentionF32Avx2;
const AttentionKernelDef kAttentionF32Avx2 = {
    .name = "attention_f32_avx2",
    .kv_strategy = "f32",
    .rank = 10,
    .refuse = [](const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx2", cpu); },
    .bind =
        [](const KvLayout& layout) {
          return BindKvPages(layout, KvFormat::kF32, kAvx2Tier, std::string(kAttentionF32Avx2.name));
        },
};

}  // namespace sage::cpu
