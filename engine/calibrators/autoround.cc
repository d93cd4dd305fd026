// The high-accuracy option: AWQ's scales, GPTQ's codes as a start, then learned rounding by signed gradients through
// the inputs' Gram matrix (quantization.md 2.7), and descent to where no single code wants to move. Each row keeps the
// best codes it has seen.
#include "engine/api/awq_scales.h"
#include "engine/api/grid_plan.h"
#include "engine/api/refined_gptq.h"
#include "engine/base/status.h"
#include "engine/solvers/grid_descent.h"
#include "engine/solvers/sign_rounding.h"

namespace sage::calibrators {
namespace {

absl::StatusOr<LayerPlan> Solve(const InputStatistics& input, const TensorView& weight, const LinearSpec& spec,
                                const LinearStrategyDef& strategy, ThreadPool& threads) {
  const int64_t N = weight.dim(0), K = weight.dim(1);
  SAGE_ASSIGN_OR_RETURN(const GridWeight start, SolveRefinedGptq(input, weight, spec, strategy, threads));
  SignRoundingOptions options;
  options.grid = GridOf(spec, strategy);
  SAGE_ASSIGN_OR_RETURN(SignRoundingResult learned,
                        SolveSignRounding(FloatsOf(weight), N, K, input.gram, start, options, threads));
  GridDescentOptions descent;
  descent.grid = options.grid;
  SAGE_ASSIGN_OR_RETURN(GridDescentResult result,
                        SolveGridDescent(FloatsOf(weight), N, K, input.gram, learned.weight, descent, threads));
  return PlanOf(std::move(result.weight), spec.symmetric);
}

}  // namespace

extern const CalibratorDef kAutoround;
const CalibratorDef kAutoround = {
    .name = "autoround",
    .summary =
        "activation-aware scales, second-order start, learned rounding: the most accurate; needs calibration text",
    .needs_activations = true,
    .choose_scales = ChooseAwqScales,
    .solve = Solve,
    .compensates = true,
    .integer_grid = true,
};

}  // namespace sage::calibrators
