// GPTQ and grid descent with the options of the calibrators.
#include "engine/api/refined_gptq.h"

#include "engine/api/grid_plan.h"
#include "engine/base/status.h"
#include "engine/solvers/grid_descent.h"

namespace sage {
namespace {

constexpr double kDamp = 0.01;

}  // namespace

ActOrder OrderOf(const LinearSpec& spec, const LinearStrategyDef& strategy) {
  if (!spec.act_order) return ActOrder::kGroupAware;
  return strategy.stores_g_idx ? ActOrder::kGroup : ActOrder::kStatic;
}

absl::StatusOr<GridWeight> SolveRefinedGptq(const InputStatistics& input, const TensorView& weight,
                                            const LinearSpec& spec, const LinearStrategyDef& strategy,
                                            ThreadPool& threads) {
  const int64_t N = weight.dim(0), K = weight.dim(1);
  GptqOptions options;
  options.grid = GridOf(spec, strategy);
  options.damp = kDamp;
  options.search_grid = true;
  options.weighted_search = true;
  options.search.norm = 2.0;
  options.order = OrderOf(spec, strategy);
  SAGE_ASSIGN_OR_RETURN(GptqResult start, SolveGptq(FloatsOf(weight), N, K, input.gram, {}, options, threads));
  GridDescentOptions descent;
  descent.grid = options.grid;
  descent.damp = start.damp;
  SAGE_ASSIGN_OR_RETURN(GridDescentResult result,
                        SolveGridDescent(FloatsOf(weight), N, K, input.gram, start.weight, descent, threads));
  return std::move(result.weight);
}

absl::StatusOr<LayerPlan> PlanRefinedGptq(const InputStatistics& input, const TensorView& weight,
                                          const LinearSpec& spec, const LinearStrategyDef& strategy,
                                          ThreadPool& threads) {
  SAGE_ASSIGN_OR_RETURN(GridWeight solved, SolveRefinedGptq(input, weight, spec, strategy, threads));
  return PlanOf(std::move(solved), spec.symmetric);
}

}  // namespace sage
