// Keys and values cached as 32-bit floats: nothing is lost.
#include "engine/api/kv_strategy.h"

namespace sage::kv_strategies {
namespace {

// K and V of page_tokens positions, no scales.
size_t PageBytes(const KvLayout& layout) {
  return size_t{2} * static_cast<size_t>(layout.KH) * static_cast<size_t>(layout.page_tokens) *
         static_cast<size_t>(layout.D) * sizeof(float);
}

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout, const Backend& backend) {
  return backend.BindKv("f32", layout);
}

}  // namespace

extern const KvStrategyDef kF32;
const KvStrategyDef kF32 = {
    .name = "f32",
    .summary = "32-bit floats, exact",
    .bits = 32,
    .tolerance = 0,
    .page_bytes = PageBytes,
    .bind = Bind,
};

}  // namespace sage::kv_strategies
