// Keys and values cached as int8 with a scale each position and head: its largest magnitude / 127, from the data.
#include "engine/api/kv_strategy.h"

namespace sage::kv_strategies {
namespace {

size_t PageBytes(const KvLayout& layout) { return KvPageBytes(layout, 1, sizeof(float), 0); }

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout, const Backend& backend) {
  return backend.BindKv("int8_per_token", layout);
}

}  // namespace

extern const KvStrategyDef kInt8PerToken;
const KvStrategyDef kInt8PerToken = {
    .name = "int8_per_token",
    .summary = "8-bit integers, a scale each token and head",
    .bits = 8,
    .tolerance = 0.01,
    .page_bytes = PageBytes,
    .bind = Bind,
};

}  // namespace sage::kv_strategies
