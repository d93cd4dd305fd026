// The weights that a layer behind quantized ones should have: those whose outputs, on the inputs it really gets, come
// nearest to the outputs of the unquantized model.
//
// With x the layer's inputs, H = sum x x^T and E = sum e x^T, where e is what the layer's outputs lack on x, least
// squares gives W' = W + E H^-1. How much of it holds beyond the tokens it was fitted on is measured: the correction of
// one half of the tokens is tried on the other, which gives the best factor in closed form.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/base/thread_pool.h"

namespace sage {

// Sums over some tokens.
struct TargetSums {
  absl::Span<const float> gram;   // [K, K] sum x x^T
  absl::Span<const float> cross;  // [N, K] sum e x^T
};

struct TargetWeight {
  std::vector<float> weight;  // [N, K]
  // By part: 0 = the weights as they were, 1 = the whole least-squares correction; and the one of `damps` whose
  // correction held best.
  std::vector<double> strength, damp;
};

// W + strength * E (H + damp * mean diagonal)^-1 over both halves together, damp being the one of `damps` (each in
// (0, 1]) whose correction of one half takes most from the error of the other. `parts`: rows of the layers that are
// stacked in the weight, each with a strength and a damping of its own; a sample of their rows decides. Inputs that
// were zero in every token keep their weights. INVALID_ARGUMENT on shapes and values that are not finite; where no
// damping makes H positive definite the weights stay as they were.
absl::StatusOr<TargetWeight> SolveOutputTarget(absl::Span<const float> weight, absl::Span<const int64_t> parts,
                                               int64_t K, const TargetSums& first, const TargetSums& second,
                                               absl::Span<const double> damps, ThreadPool& threads);

}  // namespace sage
