// Attention over int8 pages with channel shifts, on AVX2.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {

extern const AttentionKernelDef kAttentionInt8PerChannelAvx2;
const AttentionKernelDef kAttentionInt8PerChannelAvx2 = {
    .name = "attention_int8_per_channel_avx2",
    .kv_strategy = "int8_per_channel",
    .rank = 10,
    .refuse = [](const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "avx2", cpu); },
    .bind =
        [](const KvLayout& layout) {
          return BindKvPages(layout, KvFormat::kInt8Channel, kAvx2Tier, std::string(kAttentionInt8PerChannelAvx2.name));
        },
};

}  // namespace sage::cpu
