// A weight matrix on the integer grid, as every solver here returns it, and its error under the inputs' Gram matrix.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/base/thread_pool.h"
#include "engine/quant/integer_grid.h"

namespace sage {

// The grid that is asked for.
struct GridSpec {
  int bits = 4;             // 2..8
  int64_t group_size = -1;  // inputs that share a scale, a divisor of K; -1 = one scale a row
  bool symmetric = true;
  DType scale_dtype = DType::kF32;  // stored precision: F32, F16 or BF16
  double clip = 0;  // ranges begin at (1 - clip) of the weights' extremes, 0..1; searches go on from there
};

// w[n, k] = scale[n, g] * (code[n, k] - zero[n, g]) with g = k / group_size, or g_idx[k] where g_idx is given.
struct GridWeight {
  std::vector<int8_t> codes;   // [N, K] signed
  std::vector<float> scale;    // [N, G]
  std::vector<float> zero;     // [N, G] whole numbers; all zero when symmetric
  std::vector<int32_t> g_idx;  // [K] or empty
};

// OK, or INVALID_ARGUMENT: shape, bits, group size, scale dtype or a weight that is not finite. `who` starts messages.
absl::Status CheckGridProblem(std::string_view who, absl::Span<const float> weight, int64_t N, int64_t K,
                              const GridSpec& spec);
// OK, or INVALID_ARGUMENT (BAD_START): a weight that a solver is to improve does not fit the grid.
absl::Status CheckGridStart(std::string_view who, const GridWeight& start, int64_t N, int64_t K, const GridSpec& spec);
// Inputs of a group: group_size, or K.
inline int64_t GroupWidth(const GridSpec& spec, int64_t K) { return spec.group_size > 0 ? spec.group_size : K; }

// Every weight to its nearest code on the grid of its group's extremes.
absl::StatusOr<GridWeight> RoundToNearest(absl::Span<const float> weight, int64_t N, int64_t K, const GridSpec& spec,
                                          ThreadPool& threads);
// What the codes mean: [N, K].
std::vector<float> ValuesOf(const GridWeight& weight, int64_t N, int64_t K);

// tr((A - B) H (A - B)^T) for A, B [N, K] and the Gram matrix H [K, K]: the summed squared difference of the layer's
// outputs over the tokens of H. One matrix product, no forward.
double GramError(absl::Span<const float> a, absl::Span<const float> b, absl::Span<const float> gram, int64_t N,
                 int64_t K, ThreadPool& threads);
// The same for each row: [N].
std::vector<double> GramErrorOfRows(absl::Span<const float> a, absl::Span<const float> b, absl::Span<const float> gram,
                                    int64_t N, int64_t K, ThreadPool& threads);

// The range of `who`'s group does not fit the scale dtype.
absl::Status ScaleOverflow(std::string_view who, int64_t row, int64_t group, const GridSpec& spec);

}  // namespace sage
