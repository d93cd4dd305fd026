// Keys and values cached as e4m3 with a scale each position and head: its largest magnitude / 448, from the data,
// of a key or of what it differs by from the first key of its page. Both belong to what they were written with, so no
// later token changes how an earlier one reads.
#include "engine/api/kv_strategy.h"

namespace sage::kv_strategies {
namespace {

// With the first key of the page in f16: a byte for each channel of K and of V.
size_t PageBytes(const KvLayout& layout) { return KvPageBytes(layout, 1, sizeof(float), 1); }

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout, const Backend& backend) {
  return backend.BindKv("fp8_e4m3", layout);
}

}  // namespace

extern const KvStrategyDef kFp8E4m3;
const KvStrategyDef kFp8E4m3 = {
    .name = "fp8_e4m3",
    .summary = "8-bit floats e4m3, a scale each token and head",
    .bits = 8,
    .tolerance = 0.04,
    .page_bytes = PageBytes,
    .bind = Bind,
};

}  // namespace sage::kv_strategies
