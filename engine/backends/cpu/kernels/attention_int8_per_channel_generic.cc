// Attention over int8 pages with channel shifts, on any CPU.
#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_pages.h"

namespace sage::cpu {

extern const AttentionKernelDef kAttentionInt8PerChannelGeneric;
const AttentionKernelDef kAttentionInt8PerChannelGeneric = {
    .name = "attention_int8_per_channel_generic",
    .kv_strategy = "int8_per_channel",
    .rank = 0,
    .refuse = [](const KvLayout& layout, const CpuFeatures& cpu) { return RefuseKvPages(layout, "generic", cpu); },
    .bind =
        [](const KvLayout& layout) {
          return BindKvPages(layout, KvFormat::kInt8Channel, kGenericTier,
                             std::string(kAttentionInt8PerChannelGeneric.name));
        },
};

}  // namespace sage::cpu
