// Between a layer's spec and the solvers of engine/solvers: the grid that is asked for, and a solution as a plan.
#pragma once

#include <utility>

#include "engine/api/linear_strategy.h"
#include "engine/solvers/grid_weight.h"

namespace sage {

inline GridSpec GridOf(const LinearSpec& spec, const LinearStrategyDef& strategy) {
  GridSpec grid;
  grid.bits = strategy.weight_bits;
  grid.group_size = spec.group_size;
  grid.symmetric = spec.symmetric;
  grid.scale_dtype = spec.scale_dtype;
  grid.clip = spec.clip_ratio;
  return grid;
}

inline LayerPlan PlanOf(GridWeight weight, bool symmetric) {
  LayerPlan plan;
  plan.scale = std::move(weight.scale);
  if (!symmetric) plan.zero = std::move(weight.zero);
  plan.codes = std::move(weight.codes);
  plan.g_idx = std::move(weight.g_idx);
  return plan;
}

inline absl::Span<const float> FloatsOf(const TensorView& weight) {
  return {weight.as<float>(), static_cast<size_t>(weight.elements())};
}

}  // namespace sage
