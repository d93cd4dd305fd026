// How keys and values are kept in the paged cache. Plug-ins: engine/kv_strategies/<name>.cc.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/api/backend.h"

namespace sage {

struct KvStrategyDef {
  std::string_view name;  // "bf16"
  std::string_view summary;
  double bits = 16;  // stored bits a value, without scales
  // Conformance bound: ||load(store(x)) - x|| / ||x||.
  double tolerance = 0;
  // Bytes of one page of one layer, K and V together, scales included.
  size_t (*page_bytes)(const KvLayout& layout) = nullptr;
  absl::StatusOr<std::unique_ptr<KvKernel>> (*bind)(const KvLayout& layout, const Backend& backend) = nullptr;
};

// Bytes of a page whose K and V take `value_bytes` a value (heads padded to 16 values), with `position_bytes` for each
// position and head and `channel_bytes` for each channel of a head, for K and V each.
constexpr size_t KvPageBytes(const KvLayout& layout, size_t value_bytes, size_t position_bytes, size_t channel_bytes) {
  const size_t tokens = static_cast<size_t>(layout.page_tokens), Dp = static_cast<size_t>(layout.D + 15) / 16 * 16;
  return size_t{2} * static_cast<size_t>(layout.KH) *
         (tokens * Dp * value_bytes + tokens * position_bytes + Dp * channel_bytes);
}

absl::Span<const KvStrategyDef* const> KvStrategies();
absl::StatusOr<const KvStrategyDef*> FindKvStrategy(std::string_view name);
// A plug-in name, or a word: "", "none" and "auto" are bf16 here, "fp8" is fp8_e4m3, "int8" is int8_per_token.
absl::StatusOr<std::string> ResolveKvStrategy(std::string_view word);

}  // namespace sage
