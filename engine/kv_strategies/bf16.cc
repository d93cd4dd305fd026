// Keys and values cached as bfloat16, rounded half to even.
#include "engine/api/kv_strategy.h"

namespace sage::kv_strategies {
namespace {

size_t PageBytes(const KvLayout& layout) { return KvPageBytes(layout, sizeof(uint16_t), 0, 0); }

absl::StatusOr<std::unique_ptr<KvKernel>> Bind(const KvLayout& layout, const Backend& backend) {
  return backend.BindKv("bf16", layout);
}

}  // namespace

extern const KvStrategyDef kBf16;
const KvStrategyDef kBf16 = {
    .name = "bf16",
    .summary = "bfloat16, rounded half to even",
    .bits = 16,
    .tolerance = 0x1p-8,
    .page_bytes = PageBytes,
    .bind = Bind,
};

}  // namespace sage::kv_strategies
