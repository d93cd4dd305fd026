// Keys and values cached as e5m2 with a scale each position and head: its largest magnitude / 57344, from the data,
// of a key or of what it differs by from the first key of its page.
// Wider range and half the precision of e4m3; with a scale of its own for each position e4m3 is the better choice.
#include "engine/api/kv_strategy.h"

namespace sage::kv_strategies {
namespace {

// With the first key of the page in f16: a byte for each channel of K and of V.
size_t PageBytes(const KvLayout& layout) { return KvPageBytes(layout, 1, sizeof(float), 1); }

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout, const Backend& backend) {
  return backend.BindKv("fp8_e5m2", layout);
}

}  // namespace

extern const KvStrategyDef kFp8E5m2;
const KvStrategyDef kFp8E5m2 = {
    .name = "fp8_e5m2",
    .summary = "8-bit floats e5m2, a scale each token and head",
    .bits = 8,
    .tolerance = 0.08,
    .page_bytes = PageBytes,
    .bind = Bind,
};

}  // namespace sage::kv_strategies
