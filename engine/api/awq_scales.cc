// Wraps the scale searches of engine/solvers for calibrators.
#include "engine/api/awq_scales.h"

#include "absl/strings/str_format.h"
#include "engine/api/grid_plan.h"
#include "engine/base/status.h"
#include "engine/solvers/scale_search.h"

namespace sage {
namespace {

constexpr int kSteps = 20;

std::vector<LayerWeight> LayersOf(const SharedInput& shared) {
  std::vector<LayerWeight> layers;
  for (const TensorView& weight : shared.weights) layers.push_back({FloatsOf(weight), weight.dim(0)});
  return layers;
}

}  // namespace

InputScales ScalesOf(AwqChoice choice) {
  std::string how =
      choice.identity ? "none" : absl::StrFormat("awq ratio %.2f%s", choice.ratio, choice.duo ? " (duo)" : "");
  return {std::move(choice.scales), std::move(how)};
}

absl::StatusOr<InputScales> ChooseAwqScales(const SharedInput& shared, ThreadPool& threads) {
  const std::vector<LayerWeight> layers = LayersOf(shared);
  SAGE_ASSIGN_OR_RETURN(AwqChoice choice,
                        SearchAwqScales(layers, shared.input.K, shared.input.mean_abs, shared.input.gram,
                                        GridOf(shared.spec, shared.strategy), kSteps, AwqCandidates::kBoth, threads));
  return ScalesOf(std::move(choice));
}

absl::StatusOr<LayerPlan> SolveClipped(const InputStatistics& input, const TensorView& weight, const LinearSpec& spec,
                                       const LinearStrategyDef& strategy, ThreadPool& threads) {
  const int64_t N = weight.dim(0), K = weight.dim(1);
  GridSpec grid = GridOf(spec, strategy);
  SAGE_ASSIGN_OR_RETURN(const ClipChoice clip, SearchClip(FloatsOf(weight), N, K, input.gram, grid, threads));
  std::vector<float> clipped(FloatsOf(weight).begin(), FloatsOf(weight).end());
  ClipWeights(clipped.data(), N, K, clip.limit);
  grid.clip = 0;  // the limits are cut already
  SAGE_ASSIGN_OR_RETURN(GridWeight rounded, RoundToNearest(clipped, N, K, grid, threads));
  return PlanOf(std::move(rounded), spec.symmetric);
}

absl::StatusOr<InputScales> ChooseSmoothScales(const SharedInput& shared, ThreadPool& threads) {
  static constexpr double kAlphas[] = {0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95};
  const std::vector<LayerWeight> layers = LayersOf(shared);
  const InputStatistics& input = shared.input;
  const int64_t samples = static_cast<int64_t>(input.sample.size()) / input.K;
  SAGE_ASSIGN_OR_RETURN(SmoothChoice choice,
                        SearchSmoothAlpha(layers, input.K, input.max_abs, input.sample.data(), samples,
                                          GridOf(shared.spec, shared.strategy), 8, kAlphas, threads));
  if (choice.error >= choice.identity_error) {
    return InputScales{std::vector<float>(static_cast<size_t>(input.K), 1.0f), "none"};
  }
  return InputScales{std::move(choice.scales), absl::StrFormat("smoothquant alpha %.2f", choice.alpha)};
}

}  // namespace sage
