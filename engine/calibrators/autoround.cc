// The high-accuracy option: AWQ's scales, GPTQ's codes as a start, then learned rounding by signed gradients through
// the inputs' Gram matrix (quantization.md 2.7). Each row keeps the best codes it has seen.
#include "engine/api/awq_scales.h"
#include "engine/api/grid_plan.h"
#include "engine/base/status.h"
#include "engine/solvers/gptq.h"
#include "engine/solvers/sign_rounding.h"

namespace sage::calibrators {
namespace {

absl::StatusOr<LayerPlan> Solve(const InputStatistics& input, const TensorView& weight, const LinearSpec& spec,
                                const LinearStrategyDef& strategy, ThreadPool& threads) {
  const int64_t N = weight.dim(0), K = weight.dim(1);
  GptqOptions start;
  start.grid = GridOf(spec, strategy);
  start.search_grid = true;
  start.weighted_search = true;
  start.search.norm = 2.0;
  start.order = ActOrder::kGroupAware;
  SAGE_ASSIGN_OR_RETURN(const GptqResult gptq, SolveGptq(FloatsOf(weight), N, K, input.gram, {}, start, threads));
  SignRoundingOptions options;
  options.grid = start.grid;
  SAGE_ASSIGN_OR_RETURN(SignRoundingResult result,
                        SolveSignRounding(FloatsOf(weight), N, K, input.gram, gptq.weight, options, threads));
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
    .integer_grid = true,
};

}  // namespace sage::calibrators
