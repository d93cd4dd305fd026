// Improves a weight that is on the integer grid already, by descent on the quadratic loss tr((Q - W) H (Q - W)^T):
// sweeps that move one code at a time to where it is best given all others, and between them the scales of a row that
// are best for its codes (a least-squares problem of one unknown a group).
//
// Every step lowers the loss of its row, so the result is never worse than the start, row by row. Much cheaper than
// learned rounding (sign_rounding.h): a sweep touches the other inputs only where a code changes.
#pragma once

#include <cstdint>

#include "engine/solvers/grid_weight.h"

namespace sage {

struct GridDescentOptions {
  GridSpec grid;
  int rounds = 4;   // 1..1000: scales, then sweeps until no code of a row moves
  int sweeps = 8;   // 1..1000: at most, in one round
  double damp = 0;  // share of the mean diagonal that is added to it, 0..1: holds codes near their weights
  bool tune_scales = true;
};

struct GridDescentResult {
  GridWeight weight;
  double loss = 0;  // under the damped Gram matrix
  double start_loss = 0;
  int64_t moved_codes = 0;
};

// start: codes on the grid; g_idx is honoured and kept. INVALID_ARGUMENT on shapes, values that are not finite or a
// start that does not fit the grid (BAD_START).
absl::StatusOr<GridDescentResult> SolveGridDescent(absl::Span<const float> weight, int64_t N, int64_t K,
                                                   absl::Span<const float> gram, const GridWeight& start,
                                                   const GridDescentOptions& options, ThreadPool& threads);

}  // namespace sage
