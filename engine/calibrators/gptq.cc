// GPTQ: weights are rounded column by column and the columns not yet rounded make up for each error (quantization.md
// 2.2). act_order takes the inputs with the largest energy first: with g_idx where the strategy stores it, else with
// the scales of the original groups.
#include "engine/solvers/gptq.h"

#include "engine/api/calibrator.h"
#include "engine/api/grid_plan.h"
#include "engine/base/status.h"

namespace sage::calibrators {
namespace {

absl::StatusOr<LayerPlan> Solve(const InputStatistics& input, const TensorView& weight, const LinearSpec& spec,
                                const LinearStrategyDef& strategy, ThreadPool& threads) {
  GptqOptions options;
  options.grid = GridOf(spec, strategy);
  options.search_grid = true;
  options.weighted_search = true;
  options.search.norm = 2.0;
  options.order = !spec.act_order         ? ActOrder::kGroupAware
                  : strategy.stores_g_idx ? ActOrder::kGroup
                                          : ActOrder::kStatic;
  SAGE_ASSIGN_OR_RETURN(GptqResult result,
                        SolveGptq(FloatsOf(weight), weight.dim(0), weight.dim(1), input.gram, {}, options, threads));
  return PlanOf(std::move(result.weight), spec.symmetric);
}

}  // namespace

extern const CalibratorDef kGptq;
const CalibratorDef kGptq = {
    .name = "gptq",
    .summary = "second-order rounding, each column's error made up for by the others; needs calibration text",
    .needs_activations = true,
    .solve = Solve,
    .integer_grid = true,
};

}  // namespace sage::calibrators
