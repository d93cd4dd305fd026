// Attention over f32 pages, on AVX-512 VNNI.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {

extern const AttentionKernelDef kAttentionF32Avx512;
const AttentionKernelDef kAttentionF32Avx512 = {
    .name = "attention_f32_avx512",
    .kv_strategy = "f32",
    .rank = 20,
    .refuse = [](const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx512", cpu); },
    .bind =
        [](const KvLayout& layout) {
          return BindKvPages(layout, KvFormat::kF32, kAvx512Tier, std::string(kAttentionF32Avx512.name));
        },
};

}  // namespace sage::cpu
