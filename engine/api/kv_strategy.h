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

absl::Span<const KvStrategyDef* const> KvStrategies();
absl::StatusOr<const KvStrategyDef*> FindKvStrategy(std::string_view name);
// "" and "none" mean bf16 here; "auto" too.
absl::StatusOr<std::string> ResolveKvStrategy(std::string_view word);

}  // namespace sage
