// Keys and values cached as int8 with steps that differ by channel: powers of two taken from the first position of each
// page, times a scale each position and head so that nothing later can overflow them.
#include "engine/api/kv_strategy.h"

namespace sage::kv_strategies {
namespace {

size_t PageBytes(const KvLayout& layout) { return KvPageBytes(layout, 1, sizeof(float), 1); }

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout, const Backend& backend) {
  return backend.BindKv("int8_per_channel", layout);
}

}  // namespace

extern const KvStrategyDef kInt8PerChannel;
const KvStrategyDef kInt8PerChannel = {
    .name = "int8_per_channel",
    .summary = "8-bit integers, channel steps of each page times a scale each token and head",
    .bits = 8,
    .tolerance = 0.01,
    .page_bytes = PageBytes,
    .bind = Bind,
};

}  // namespace sage::kv_strategies
