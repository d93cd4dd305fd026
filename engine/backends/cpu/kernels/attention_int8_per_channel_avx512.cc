// Attention over int8 pages with channel shifts, on AVX-512 VNNI.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {

extern const AttentionKernelDef kAttentionInt8PerChannelAvx512;
const AttentionKernelDef kAttentionInt8PerChannelAvx512 = {
    .name = "attention_int8_per_channel_avx512",
    .kv_strategy = "int8_per_channel",
    .rank = 20,
    .refuse = [](const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx512", cpu); },
    .bind =
        [](const KvLayout& layout) {
          return BindKvPages(layout, KvFormat::kInt8Channel, kAvx512Tier,
                             std::string(kAttentionInt8PerChannelAvx512.name));
        },
};

}  // namespace sage::cpu
