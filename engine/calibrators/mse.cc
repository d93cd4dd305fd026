// Each group's range is shrunk to where its weights' squared error is least; no calibration data needed.
#include "engine/api/calibrator.h"
#include "engine/api/grid_plan.h"
#include "engine/base/status.h"
#include "engine/solvers/weight_mse.h"

namespace sage::calibrators {
namespace {

absl::StatusOr<LayerPlan> Solve(const InputStatistics&, const TensorView& weight, const LinearSpec& spec,
                                const LinearStrategyDef& strategy, ThreadPool& threads) {
  ShrinkSearch search;
  search.norm = 2.0;
  SAGE_ASSIGN_OR_RETURN(GridWeight grid, SolveWeightMse(FloatsOf(weight), weight.dim(0), weight.dim(1), {},
                                                        GridOf(spec, strategy), search, threads));
  return PlanOf(std::move(grid), spec.symmetric);
}

}  // namespace

extern const CalibratorDef kMse;
const CalibratorDef kMse = {
    .name = "mse",
    .summary = "round to nearest on the range with the least squared error of the weights; no calibration data needed",
    .needs_activations = false,
    .solve = Solve,
    .integer_grid = true,
};

}  // namespace sage::calibrators
