// AWQ's scales, then GPTQ on the scaled weights: the two take different parts of the error.
#include "engine/api/awq_scales.h"
#include "engine/api/grid_plan.h"
#include "engine/base/status.h"
#include "engine/solvers/gptq.h"

namespace sage::calibrators {
namespace {

absl::StatusOr<LayerPlan> Solve(const InputStatistics& input, const TensorView& weight, const LinearSpec& spec,
                                const LinearStrategyDef& strategy, ThreadPool& threads) {
  GptqOptions options;
  options.grid = GridOf(spec, strategy);
  options.search_grid = true;
  options.weighted_search = true;
  options.search.norm = 2.0;
  options.order = ActOrder::kGroupAware;
  SAGE_ASSIGN_OR_RETURN(GptqResult result,
                        SolveGptq(FloatsOf(weight), weight.dim(0), weight.dim(1), input.gram, {}, options, threads));
  return PlanOf(std::move(result.weight), spec.symmetric);
}

}  // namespace

extern const CalibratorDef kAwqGptq;
const CalibratorDef kAwqGptq = {
    .name = "awq+gptq",
    .summary = "activation-aware scales, then second-order rounding; needs calibration text",
    .needs_activations = true,
    .choose_scales = ChooseAwqScales,
    .solve = Solve,
    .integer_grid = true,
};

}  // namespace sage::calibrators
