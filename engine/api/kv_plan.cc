// What a plan of KV strategies is called and how much memory its pages take.
#include <algorithm>

#include "absl/strings/str_join.h"
#include "engine/api/kv_strategy.h"
#include "engine/base/status.h"

namespace sage {

std::string KvPlan::Name() const {
  std::vector<std::string> names;
  for (const KvLayerPlan& layer : layers) {
    if (std::find(names.begin(), names.end(), layer.strategy) == names.end()) names.push_back(layer.strategy);
  }
  return absl::StrJoin(names, "+");
}

KvPlan UniformKvPlan(std::string_view strategy, int64_t layers) {
  KvPlan out;
  out.layers.assign(static_cast<size_t>(layers), {std::string(strategy), nullptr});
  return out;
}

absl::StatusOr<int64_t> KvPlanPageBytes(const KvPlan& plan, const KvLayout& layout) {
  int64_t total = 0;
  for (const KvLayerPlan& layer : plan.layers) {
    SAGE_ASSIGN_OR_RETURN(const KvStrategyDef* def, FindKvStrategy(layer.strategy));
    total += static_cast<int64_t>(def->page_bytes(layout));
  }
  return total;
}

}  // namespace sage
