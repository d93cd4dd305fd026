// GPTQ and grid descent with the options of the calibrators.
#include "engine/api/refined_gptq.h"

#include <algorithm>
#include <limits>

#include "engine/api/awq_scales.h"
#include "engine/api/grid_plan.h"
#include "engine/base/status.h"
#include "engine/solvers/grid_descent.h"
#include "engine/solvers/scale_search.h"

namespace sage {
namespace {

constexpr double kDamp = 0.01;
// Shares of the mean diagonal that are tried: the less the tokens say about an input, the less the others may be bent
// to make up for its rounding.
constexpr double kDamps[] = {0.01, 0.05, 0.25, 1.0};
constexpr int64_t kTrialRows = 64;
constexpr int kScaleSteps = 20;

GptqOptions OptionsOf(const LinearSpec& spec, const LinearStrategyDef& strategy) {
  GptqOptions options;
  options.grid = GridOf(spec, strategy);
  options.damp = kDamp;
  options.search_grid = true;
  options.weighted_search = true;
  options.search.norm = 2.0;
  options.order = OrderOf(spec, strategy);
  options.f64 = spec.solve_in_f64;
  return options;
}

}  // namespace

ActOrder OrderOf(const LinearSpec& spec, const LinearStrategyDef& strategy) {
  if (!spec.act_order) return ActOrder::kGroupAware;
  return strategy.stores_g_idx ? ActOrder::kGroup : ActOrder::kStatic;
}

namespace {

// shift: of GPTAQ's correction, or empty. Its codes aim at other outputs than the weights' own, so that descent towards
// the weights would take the correction back.
absl::StatusOr<RefinedWeight> Refine(absl::Span<const float> weight, int64_t N, int64_t K, absl::Span<const float> gram,
                                     absl::Span<const float> shift, const GptqOptions& options, ThreadPool& threads) {
  SAGE_ASSIGN_OR_RETURN(GptqResult start, SolveGptq(weight, N, K, gram, shift, options, threads));
  if (!shift.empty()) return RefinedWeight{std::move(start.weight), start.damp};
  GridDescentOptions descent;
  descent.grid = options.grid;
  descent.damp = start.damp;
  SAGE_ASSIGN_OR_RETURN(GridDescentResult result, SolveGridDescent(weight, N, K, gram, start.weight, descent, threads));
  return RefinedWeight{std::move(result.weight), start.damp};
}

// The damping with which rows solved on the first half of the tokens do best on the second.
absl::StatusOr<double> ChooseDamp(const InputStatistics& input, absl::Span<const float> weight, int64_t N, int64_t K,
                                  GptqOptions options, ThreadPool& threads) {
  if (input.halves[0].gram.empty()) return kDamp;
  const int64_t count = std::min(N, kTrialRows);
  std::vector<float> rows;
  for (int64_t r = 0; r < count; ++r) {
    const float* row = weight.data() + r * N / count * K;
    rows.insert(rows.end(), row, row + K);
  }
  double best = kDamp, least = std::numeric_limits<double>::infinity();
  for (const double damp : kDamps) {
    options.damp = damp;
    const absl::StatusOr<RefinedWeight> solved = Refine(rows, count, K, input.halves[0].gram, {}, options, threads);
    if (!solved.ok()) continue;  // a half may be too few tokens for a little damping
    const double error = GramError(rows, ValuesOf(solved->weight, count, K), input.halves[1].gram, count, K, threads);
    if (!(error < least)) continue;
    least = error;
    best = damp;
  }
  return best;
}

}  // namespace

absl::StatusOr<RefinedWeight> SolveRefinedGptq(const InputStatistics& input, const TensorView& weight,
                                               const LinearSpec& spec, const LinearStrategyDef& strategy,
                                               ThreadPool& threads) {
  const int64_t N = weight.dim(0), K = weight.dim(1);
  GptqOptions options = OptionsOf(spec, strategy);
  SAGE_ASSIGN_OR_RETURN(options.damp, ChooseDamp(input, FloatsOf(weight), N, K, options, threads));
  return Refine(FloatsOf(weight), N, K, input.gram, input.shift, options, threads);
}

absl::StatusOr<InputScales> ChooseScalesForGptq(const SharedInput& shared, ThreadPool& threads) {
  const int64_t K = shared.input.K;
  const GptqOptions options = OptionsOf(shared.spec, shared.strategy);
  SAGE_ASSIGN_OR_RETURN(const std::vector<float> energy, RemainingEnergy(shared.input.gram, K, options, threads));
  std::vector<LayerWeight> layers;
  for (const TensorView& weight : shared.weights) layers.push_back({FloatsOf(weight), weight.dim(0)});
  SAGE_ASSIGN_OR_RETURN(AwqChoice choice, SearchCompensatedScales(layers, K, shared.input.mean_abs, energy,
                                                                  options.grid, kScaleSteps, threads));
  return ScalesOf(std::move(choice));
}

absl::StatusOr<LayerPlan> PlanRefinedGptq(const InputStatistics& input, const TensorView& weight,
                                          const LinearSpec& spec, const LinearStrategyDef& strategy,
                                          ThreadPool& threads) {
  SAGE_ASSIGN_OR_RETURN(RefinedWeight solved, SolveRefinedGptq(input, weight, spec, strategy, threads));
  return PlanOf(std::move(solved.weight), spec.symmetric);
}

}  // namespace sage
