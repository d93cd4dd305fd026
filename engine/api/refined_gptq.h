// GPTQ followed by descent on the same loss, as the calibrators use it.
#pragma once

#include "engine/api/calibrator.h"
#include "engine/solvers/gptq.h"

namespace sage {

// The order that a spec asks for: group-aware unless act_order is set, then with g_idx where the strategy stores it,
// else with the scales of the original groups.
ActOrder OrderOf(const LinearSpec& spec, const LinearStrategyDef& strategy);

struct RefinedWeight {
  GridWeight weight;
  double damp = 0;  // share of the mean diagonal that was added to the Gram matrix
};

// Codes of GPTQ with searched grids, then improved code by code and scale by scale (solvers/grid_descent.h). Where the
// statistics come in halves, one solved on the other says how much damping holds beyond the calibration tokens.
absl::StatusOr<RefinedWeight> SolveRefinedGptq(const InputStatistics& input, const TensorView& weight,
                                               const LinearSpec& spec, const LinearStrategyDef& strategy,
                                               ThreadPool& threads);
// AWQ's candidates of scales, by the error that will be left when GPTQ has made up for what it can.
absl::StatusOr<InputScales> ChooseScalesForGptq(const SharedInput& shared, ThreadPool& threads);
// SolveRefinedGptq as a plan.
absl::StatusOr<LayerPlan> PlanRefinedGptq(const InputStatistics& input, const TensorView& weight,
                                          const LinearSpec& spec, const LinearStrategyDef& strategy,
                                          ThreadPool& threads);

}  // namespace sage
