// How keys and values are kept in the paged cache. Plug-ins: engine/kv_strategies/<name>.cc.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

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

// How every layer of an engine keeps its keys and values (KVQuantPlan on the wire).
struct KvLayerPlan {
  std::string strategy;                         // plug-in name
  std::shared_ptr<const KvLayerScales> scales;  // null: from the data
};
struct KvPlan {
  std::vector<KvLayerPlan> layers;
  int sink_pages = 0;  // first pages of each sequence that keep 16 bits in layers of 8 bits

  // "fp8_e4m3", or "fp8_e4m3+bf16" where layers differ, in order of appearance.
  std::string Name() const;
};
// The same strategy in every layer, scales from the data.
KvPlan UniformKvPlan(std::string_view strategy, int64_t layers);
// Bytes of a page of all layers together. INVALID_ARGUMENT for an unknown strategy.
absl::StatusOr<int64_t> KvPlanPageBytes(const KvPlan& plan, const KvLayout& layout);

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
