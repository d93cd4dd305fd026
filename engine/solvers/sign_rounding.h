// Learned rounding of one linear layer by signed gradient descent, in the manner of AutoRound: an offset for every
// weight before it is rounded and a factor for each end of every group's range, moved by the sign of their gradient.
//
// The loss tr((Q - W) H (Q - W)^T) under the inputs' Gram matrix H is quadratic, so one product with H gives both its
// value and its gradient; no forward is needed. Rows are independent and each keeps the best codes it has seen, its
// start included: the result is never worse than the start, row by row.
#pragma once

#include <cstdint>

#include "engine/solvers/grid_weight.h"

namespace sage {

struct SignRoundingOptions {
  GridSpec grid;
  int iterations = 200;   // 1..100000; each costs one [N, K] x [K, K] product
  double rate = 0;        // first step of the offsets, falling linearly to 0; 0 = 1 / iterations
  double range_rate = 0;  // first step of the range factors; 0 = like the offsets
  bool tune_range = true;
};

struct SignRoundingResult {
  GridWeight weight;
  double loss = 0;
  double start_loss = 0;
  int64_t improved_rows = 0;
};

// start: codes on the grid (RoundToNearest, SolveWeightMse, SolveGptq; g_idx is honoured and kept). INVALID_ARGUMENT on
// shapes, values that are not finite or a start that does not fit the grid (BAD_START).
absl::StatusOr<SignRoundingResult> SolveSignRounding(absl::Span<const float> weight, int64_t N, int64_t K,
                                                     absl::Span<const float> gram, const GridWeight& start,
                                                     const SignRoundingOptions& options, ThreadPool& threads);

}  // namespace sage
