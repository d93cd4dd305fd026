// The shrink search of weight ranges.
#include "engine/solvers/weight_mse.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/solvers/grid_kernels.h"

namespace sage {
namespace {

constexpr int64_t kCheckAfter = 16;

// Stops as soon as the sum passes `bound`: a shrunk range that is worse shows it after a few weights.
double ErrorOnGrid(const float* weights, const float* importance, int64_t count, const IntegerGrid& grid, int bits,
                   double norm, double bound) {
  if (norm == 2.0) return HostGridKernels().squared_error(weights, importance, count, grid, bits, bound);
  double sum = 0;
  for (int64_t begin = 0; begin < count; begin += kCheckAfter) {
    const int64_t end = std::min(count, begin + kCheckAfter);
    for (int64_t i = begin; i < end; ++i) {
      const double off = std::fabs(static_cast<double>(weights[i] - ValueOf(CodeOf(weights[i], grid, bits), grid)));
      const double error = std::pow(off, norm);
      sum += importance == nullptr ? error : error * static_cast<double>(importance[i]);
    }
    if (sum > bound) return sum;
  }
  return sum;
}

}  // namespace

IntegerGrid SearchGrid(const float* weights, const float* importance, int64_t count, const GridSpec& spec,
                       const ShrinkSearch& search) {
  float min = 0.0f, max = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    min = std::min(min, weights[i]);
    max = std::max(max, weights[i]);
  }
  IntegerGrid best = GridFromRange(min, max, spec.bits, spec.symmetric, spec.scale_dtype, spec.clip);
  if (!std::isfinite(best.scale)) return best;
  double least =
      ErrorOnGrid(weights, importance, count, best, spec.bits, search.norm, std::numeric_limits<double>::infinity());
  for (int t = 1; t < std::min(search.steps, search.grid); ++t) {
    const double left = 1.0 - static_cast<double>(t) / static_cast<double>(search.grid);
    const double clip =
        spec.clip == 0 ? static_cast<double>(t) / static_cast<double>(search.grid) : 1.0 - (1.0 - spec.clip) * left;
    const IntegerGrid grid = GridFromRange(min, max, spec.bits, spec.symmetric, spec.scale_dtype, clip);
    const double error = ErrorOnGrid(weights, importance, count, grid, spec.bits, search.norm, least);
    if (error < least) {
      least = error;
      best = grid;
    }
  }
  return best;
}

std::vector<float> ImportanceFromGram(absl::Span<const float> gram, int64_t K, int64_t tokens) {
  std::vector<float> out(K);
  const float count = static_cast<float>(std::max<int64_t>(1, tokens));
  for (int64_t k = 0; k < K; ++k) out[k] = gram[k * K + k] / count;
  return out;
}

absl::StatusOr<GridWeight> SolveWeightMse(absl::Span<const float> weight, int64_t N, int64_t K,
                                          absl::Span<const float> importance, const GridSpec& spec,
                                          const ShrinkSearch& search, ThreadPool& threads) {
  SAGE_RETURN_IF_ERROR(CheckGridProblem("mse", weight, N, K, spec));
  if (!importance.empty() && importance.size() != static_cast<size_t>(K)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_IMPORTANCE",
                     absl::StrCat("mse: importance must have K=", K, " values, got ", importance.size()));
  }
  for (const float value : importance) {
    if (!(value >= 0) || !std::isfinite(value)) {
      return MakeError(absl::StatusCode::kInvalidArgument, "BAD_IMPORTANCE",
                       absl::StrCat("mse: importance must be finite and not negative, got ", value));
    }
  }
  const int64_t width = GroupWidth(spec, K), G = K / width;
  GridWeight out;
  out.codes.resize(N * K);
  out.scale.resize(N * G);
  out.zero.resize(N * G);
  std::atomic<int64_t> overflow{-1};
  threads.ParallelFor(N * G, 1, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const float* values = weight.data() + at * width;
      const float* weights_of_error = importance.empty() ? nullptr : importance.data() + at % G * width;
      const IntegerGrid grid = SearchGrid(values, weights_of_error, width, spec, search);
      if (!std::isfinite(grid.scale)) {
        overflow.store(at);
        return;
      }
      out.scale[at] = grid.scale;
      out.zero[at] = static_cast<float>(grid.zero);
      for (int64_t i = 0; i < width; ++i) out.codes[at * width + i] = CodeOf(values[i], grid, spec.bits);
    }
  });
  if (overflow.load() >= 0) return ScaleOverflow("mse", overflow.load() / G, overflow.load() % G, spec);
  return out;
}

}  // namespace sage
