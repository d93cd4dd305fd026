// Checks, plain rounding and the error of a weight on the integer grid.
#include "engine/solvers/grid_weight.h"

#include <atomic>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/solvers/dense_algebra.h"

namespace sage {
absl::Status CheckGridProblem(std::string_view who, absl::Span<const float> weight, int64_t N, int64_t K,
                              const GridSpec& spec) {
  const std::string name(who);
  if (N < 1 || K < 1 || N > INT32_MAX || K > INT32_MAX || weight.size() != static_cast<size_t>(N * K)) {
    return InvalidInput("BAD_LAYER_SHAPE",
                        absl::StrCat(name, ": the weight must be [N, K] with N and K positive, got N=", N, ", K=", K,
                                     " and ", weight.size(), " values"));
  }
  if (spec.bits < 2 || spec.bits > 8) {
    return InvalidInput("BAD_BITS", absl::StrCat(name, ": bits must be 2..8, got ", spec.bits));
  }
  if (spec.group_size != -1 && (spec.group_size < 1 || K % spec.group_size != 0)) {
    return InvalidInput("GROUP_SIZE_MUST_DIVIDE_K",
                        absl::StrCat(name, ": group_size must divide K, got K=", K, ", group_size=", spec.group_size));
  }
  if (spec.scale_dtype != DType::kF32 && spec.scale_dtype != DType::kF16 && spec.scale_dtype != DType::kBF16) {
    return InvalidInput("BAD_SCALE_DTYPE", absl::StrCat(name, ": scale_dtype must be F32, F16 or BF16, got ",
                                                        std::string(DTypeName(spec.scale_dtype))));
  }
  if (!(spec.clip >= 0 && spec.clip < 1)) {
    return InvalidInput("BAD_CLIP_RATIO", absl::StrCat(name, ": clip must be in [0, 1), got ", spec.clip));
  }
  for (size_t i = 0; i < weight.size(); ++i) {
    if (!std::isfinite(weight[i])) {
      return InvalidInput("NON_FINITE_WEIGHT",
                          absl::StrCat(name, ": weights must be finite, got ", weight[i], " at row ",
                                       i / static_cast<size_t>(K), ", input ", i % static_cast<size_t>(K)));
    }
  }
  return absl::OkStatus();
}

absl::Status ScaleOverflow(std::string_view who, int64_t row, int64_t group, const GridSpec& spec) {
  return InvalidInput("SCALE_OUT_OF_RANGE",
                      absl::StrCat(std::string(who), ": the scale must fit ", std::string(DTypeName(spec.scale_dtype)),
                                   ", got a larger one at row ", row, ", group ", group));
}

absl::Status CheckGridStart(std::string_view who, const GridWeight& start, int64_t N, int64_t K, const GridSpec& spec) {
  const std::string name = absl::StrCat(std::string(who), ": ");
  const size_t G = static_cast<size_t>(K / GroupWidth(spec, K)), rows = static_cast<size_t>(N);
  if (start.codes.size() != static_cast<size_t>(N * K) || start.scale.size() != rows * G ||
      start.zero.size() != rows * G || (!start.g_idx.empty() && start.g_idx.size() != static_cast<size_t>(K))) {
    return InvalidInput("BAD_START",
                        absl::StrCat(name, "the start must have N x K codes and N x G scales and zeros, got ",
                                     start.codes.size(), ", ", start.scale.size(), ", ", start.zero.size()));
  }
  for (const int8_t code : start.codes) {
    if (code < MinCode(spec.bits) || code > MaxCode(spec.bits)) {
      return InvalidInput("BAD_START",
                          absl::StrCat(name, "codes must fit ", spec.bits, " bits, got ", static_cast<int>(code)));
    }
  }
  for (size_t i = 0; i < start.scale.size(); ++i) {
    const float zero = start.zero[i];
    const bool zero_fits = spec.symmetric
                               ? zero == 0
                               : zero >= static_cast<float>(MinCode(spec.bits)) &&
                                     zero <= static_cast<float>(MaxCode(spec.bits)) && zero == std::floor(zero);
    if (!(start.scale[i] > 0) || !std::isfinite(start.scale[i]) || !zero_fits) {
      return InvalidInput("BAD_START", absl::StrCat(name, "scales must be positive and zeros on the grid, got scale ",
                                                    start.scale[i], " and zero ", zero));
    }
  }
  for (const int32_t g : start.g_idx) {
    if (g < 0 || static_cast<size_t>(g) >= G) {
      return InvalidInput("BAD_START", absl::StrCat(name, "g_idx must be below G=", G, ", got ", g));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<GridWeight> RoundToNearest(absl::Span<const float> weight, int64_t N, int64_t K, const GridSpec& spec,
                                          ThreadPool& threads) {
  SAGE_RETURN_IF_ERROR(CheckGridProblem("rtn", weight, N, K, spec));
  const int64_t width = GroupWidth(spec, K), G = K / width;
  GridWeight out;
  out.codes.resize(N * K);
  out.scale.resize(N * G);
  out.zero.resize(N * G);
  std::atomic<int64_t> overflow{-1};
  threads.ParallelFor(N * G, 16, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const float* values = weight.data() + at * width;
      const IntegerGrid grid = GridFromWeights(values, width, spec.bits, spec.symmetric, spec.scale_dtype, spec.clip);
      if (!std::isfinite(grid.scale)) {
        overflow.store(at);
        return;
      }
      out.scale[at] = grid.scale;
      out.zero[at] = static_cast<float>(grid.zero);
      for (int64_t i = 0; i < width; ++i) out.codes[at * width + i] = CodeOf(values[i], grid, spec.bits);
    }
  });
  if (overflow.load() >= 0) return ScaleOverflow("rtn", overflow.load() / G, overflow.load() % G, spec);
  return out;
}

std::vector<float> ValuesOf(const GridWeight& weight, int64_t N, int64_t K) {
  const int64_t G = static_cast<int64_t>(weight.scale.size()) / N, width = K / G;
  std::vector<float> out(N * K);
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k = 0; k < K; ++k) {
      const int64_t g = n * G + (weight.g_idx.empty() ? k / width : weight.g_idx[k]);
      const IntegerGrid grid = {weight.scale[g], static_cast<int32_t>(weight.zero[g])};
      out[n * K + k] = ValueOf(weight.codes[n * K + k], grid);
    }
  }
  return out;
}

std::vector<double> GramErrorOfRows(absl::Span<const float> a, absl::Span<const float> b, absl::Span<const float> gram,
                                    int64_t N, int64_t K, ThreadPool& threads) {
  std::vector<float> difference(N * K), product(N * K);
  threads.ParallelFor(N * K, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) difference[i] = a[i] - b[i];
  });
  MultiplyTransposed(difference.data(), gram.data(), N, K, K, product.data(), threads);  // H is symmetric
  std::vector<double> rows(N);
  threads.ParallelFor(N, 8, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      double sum = 0;
      for (int64_t k = n * K; k < (n + 1) * K; ++k) {
        sum += static_cast<double>(difference[k]) * static_cast<double>(product[k]);
      }
      rows[n] = sum;
    }
  });
  return rows;
}

double GramError(absl::Span<const float> a, absl::Span<const float> b, absl::Span<const float> gram, int64_t N,
                 int64_t K, ThreadPool& threads) {
  double sum = 0;
  for (const double row : GramErrorOfRows(a, b, gram, N, K, threads)) sum += row;
  return sum;
}

}  // namespace sage
