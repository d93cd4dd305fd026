// AutoRound's learned rounding on top of the other methods: AWQ's scales, GPTQ's codes as a start, then offsets learned
// by signed gradients through the inputs' Gram matrix (quantization.md 2.7), and descent to where no single code wants
// to move. Each row keeps the best codes it has seen. The matrix is damped like GPTQ's: what a few thousand tokens do
// not say must not move a code.
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
  SAGE_ASSIGN_OR_RETURN(const RefinedWeight start, SolveRefinedGptq(input, weight, spec, strategy, threads));
  SignRoundingOptions options;
  options.grid = GridOf(spec, strategy);
  std::vector<float> gram = input.gram;
  double mean = 0;
  for (int64_t k = 0; k < K; ++k) mean += static_cast<double>(gram[k * K + k]) / static_cast<double>(K);
  for (int64_t k = 0; k < K; ++k) gram[k * K + k] += static_cast<float>(start.damp * mean);
  SAGE_ASSIGN_OR_RETURN(SignRoundingResult learned,
                        SolveSignRounding(FloatsOf(weight), N, K, gram, start.weight, options, threads));
  GridDescentOptions descent;
  descent.grid = options.grid;
  SAGE_ASSIGN_OR_RETURN(GridDescentResult result,
                        SolveGridDescent(FloatsOf(weight), N, K, gram, learned.weight, descent, threads));
  return PlanOf(std::move(result.weight), spec.symmetric);
}

}  // namespace

extern const CalibratorDef kAutoround;
const CalibratorDef kAutoround = {
    .name = "autoround",
    .summary = "awq+gptq, then learned rounding on the same loss: slower, seldom more accurate; needs calibration text",
    .needs_activations = true,
    .choose_scales = ChooseScalesForGptq,
    .solve = Solve,
    .compensates = true,
    .solves_by_gptq = true,
    .integer_grid = true,
};

}  // namespace sage::calibrators
