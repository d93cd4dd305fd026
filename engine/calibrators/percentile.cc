// Ranges cut to a percentile of the row's |weights|: 100 * (1 - clip_ratio), or 99.99 where clip_ratio is 0.
//
// Source: histogram percentile of quantization.md 2.4, over a row in place of an activation; groups keep their own
// extremes below that limit. Between two ranks the limit is interpolated (as numpy's percentile), so that rows of fewer
// than 10000 inputs are cut too.
#include <algorithm>
#include <cmath>

#include "engine/api/calibrator.h"
#include "engine/api/grid_plan.h"
#include "engine/base/status.h"

namespace sage::calibrators {
namespace {

// The value below which `share` of the row's |w| lie.
float RowLimit(const float* row, int64_t K, double share, std::vector<float>& scratch) {
  scratch.resize(static_cast<size_t>(K));
  for (int64_t k = 0; k < K; ++k) scratch[static_cast<size_t>(k)] = std::fabs(row[k]);
  const double place = share * static_cast<double>(K - 1);
  const auto below = static_cast<int64_t>(place);
  std::nth_element(scratch.begin(), scratch.begin() + below, scratch.end());
  const float low = scratch[static_cast<size_t>(below)];
  if (below + 1 >= K) return low;
  const float high = *std::min_element(scratch.begin() + below + 1, scratch.end());
  return low + static_cast<float>(place - static_cast<double>(below)) * (high - low);
}

absl::StatusOr<LayerPlan> Solve(const InputStatistics&, const TensorView& weight, const LinearSpec& spec,
                                const LinearStrategyDef& strategy, ThreadPool& threads) {
  const int64_t N = weight.dim(0), K = weight.dim(1);
  const double share = spec.clip_ratio > 0 ? 1.0 - spec.clip_ratio : 0.9999;
  std::vector<float> clipped(static_cast<size_t>(N * K));
  threads.ParallelFor(N, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch;
    for (int64_t n = begin; n < end; ++n) {
      const float* row = weight.as<float>() + n * K;
      const float limit = RowLimit(row, K, share, scratch);
      for (int64_t k = 0; k < K; ++k) clipped[static_cast<size_t>(n * K + k)] = std::clamp(row[k], -limit, limit);
    }
  });
  GridSpec grid = GridOf(spec, strategy);
  grid.clip = 0;  // clip_ratio is the percentile
  SAGE_ASSIGN_OR_RETURN(GridWeight rounded, RoundToNearest(clipped, N, K, grid, threads));
  return PlanOf(std::move(rounded), spec.symmetric);
}

}  // namespace

extern const CalibratorDef kPercentile;
const CalibratorDef kPercentile = {
    .name = "percentile",
    .summary = "ranges cut to a percentile of each row's weights, 100 (1 - clip_ratio); no calibration data needed",
    .needs_activations = false,
    .solve = Solve,
    .integer_grid = true,
};

}  // namespace sage::calibrators
