// Ranges that minimize the error of the weights themselves: each group's range is shrunk step by step and the best
// kept.
#pragma once

#include <cstdint>

#include "engine/solvers/grid_weight.h"

namespace sage {

// Both ends of a range are cut to (1 - t / grid) of their extreme (of what GridSpec::clip leaves of it) for t in [0,
// steps); the error is the sum of
// importance * |w - q|^norm. The first of equals wins, so the whole range is preferred.
struct ShrinkSearch {
  int grid = 100;
  int steps = 80;  // at most grid
  double norm = 2.4;
};

// importance: [count] or null (all one).
IntegerGrid SearchGrid(const float* weights, const float* importance, int64_t count, const GridSpec& spec,
                       const ShrinkSearch& search);

// E[x_j^2] from the diagonal of a Gram matrix [K, K] over `tokens` tokens: the importance of each input (imatrix).
std::vector<float> ImportanceFromGram(absl::Span<const float> gram, int64_t K, int64_t tokens);

// The `mse` method: every (row, group) on its best grid. importance: [K] or empty.
absl::StatusOr<GridWeight> SolveWeightMse(absl::Span<const float> weight, int64_t N, int64_t K,
                                          absl::Span<const float> importance, const GridSpec& spec,
                                          const ShrinkSearch& search, ThreadPool& threads);

}  // namespace sage
