// GPTQ followed by descent on the same loss, as the calibrators use it.
#pragma once

#include "engine/api/calibrator.h"
#include "engine/solvers/gptq.h"

namespace sage {

// The order that a spec asks for: group-aware unless act_order is set, then with g_idx where the strategy stores it,
// else with the scales of the original groups.
ActOrder OrderOf(const LinearSpec& spec, const LinearStrategyDef& strategy);

// Codes of GPTQ with searched grids, then improved code by code and scale by scale (solvers/grid_descent.h).
absl::StatusOr<GridWeight> SolveRefinedGptq(const InputStatistics& input, const TensorView& weight,
                                            const LinearSpec& spec, const LinearStrategyDef& strategy,
                                            ThreadPool& threads);
// The same as a plan.
absl::StatusOr<LayerPlan> PlanRefinedGptq(const InputStatistics& input, const TensorView& weight,
                                          const LinearSpec& spec, const LinearStrategyDef& strategy,
                                          ThreadPool& threads);

}  // namespace sage
