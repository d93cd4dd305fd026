// Keys and values cached as 32-bit floats: nothing is lost.
#include "engine/api/kv_strategy.h"

namespace sage::kv_strategies {
namespace {

size_t PageBytes(const KvLayout& layout) { return KvPageBytes(layout, sizeof(float), 0, 0); }

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
