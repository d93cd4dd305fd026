// AWQ and SmoothQuant combined: of both methods' scales the ones with the smaller output error on sample tokens, with
// 8-bit activations, are taken for each input; then AWQ's clip search.
#include <cmath>

#include "engine/api/awq_scales.h"
#include "engine/api/grid_plan.h"
#include "engine/base/status.h"
#include "engine/solvers/scale_search.h"

namespace sage::calibrators {
namespace {

// Squared output error under the Gram matrix plus that of rounding scaled inputs to 8 bits a token (sample tokens).
absl::StatusOr<double> ErrorOf(const SharedInput& shared, const std::vector<float>& scales, ThreadPool& threads) {
  const InputStatistics& input = shared.input;
  const int64_t K = input.K, S = static_cast<int64_t>(input.sample.size()) / K;
  std::vector<float> rounded(input.sample.size());
  for (int64_t m = 0; m < S; ++m) {
    float most = 1e-5f;
    for (int64_t k = 0; k < K; ++k) {
      most = std::max(most, std::fabs(input.sample[static_cast<size_t>(m * K + k)] / scales[static_cast<size_t>(k)]));
    }
    const float step = most / 127.0f;
    for (int64_t k = 0; k < K; ++k) {
      const size_t i = static_cast<size_t>(m * K + k);
      const float s = scales[static_cast<size_t>(k)];
      rounded[i] = static_cast<float>(RoundHalfEven(input.sample[i] / s / step)) * step * s - input.sample[i];
    }
  }
  double total = 0;
  const double per_token = static_cast<double>(input.tokens) / static_cast<double>(S);
  for (const TensorView& weight : shared.weights) {
    const int64_t N = weight.dim(0);
    SAGE_ASSIGN_OR_RETURN(const std::vector<float> fake,
                          FakeQuantize(FloatsOf(weight), N, K, scales, GridOf(shared.spec, shared.strategy), threads));
    total += GramError(fake, FloatsOf(weight), input.gram, N, K, threads);
    const std::vector<float> none(fake.size());
    total += per_token * OutputError(fake, none, N, K, rounded.data(), S, threads);
  }
  return total;
}

absl::StatusOr<InputScales> ChooseScales(const SharedInput& shared, ThreadPool& threads) {
  SAGE_ASSIGN_OR_RETURN(InputScales awq, ChooseAwqScales(shared, threads));
  SAGE_ASSIGN_OR_RETURN(InputScales smooth, ChooseSmoothScales(shared, threads));
  SAGE_ASSIGN_OR_RETURN(const double awq_error, ErrorOf(shared, awq.values, threads));
  SAGE_ASSIGN_OR_RETURN(const double smooth_error, ErrorOf(shared, smooth.values, threads));
  return awq_error <= smooth_error ? std::move(awq) : std::move(smooth);
}

}  // namespace

extern const CalibratorDef kAwqSmoothquant;
const CalibratorDef kAwqSmoothquant = {
    .name = "awq+smoothquant",
    .summary = "the better of AWQ's and SmoothQuant's scales by layer, clip search; needs calibration text",
    .needs_activations = true,
    .choose_scales = ChooseScales,
    .solve = SolveClipped,
    .integer_grid = true,
};

}  // namespace sage::calibrators
