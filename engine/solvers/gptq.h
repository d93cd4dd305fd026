// GPTQ and GPTAQ: rounds a layer's weights column by column and lets the columns not yet rounded make up for each
// error, as the Gram matrix of the layer's inputs says they can.
//
// Groups of (permuted) inputs get their grid from the updated weights at their first column, or beforehand from the
// original weights (ActOrder::kStatic). Rows are independent; lazy blocks and threads change no bit of that.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/solvers/weight_mse.h"

namespace sage {

enum class ActOrder {
  kNone,        // as they come
  kGroup,       // inputs with the largest diagonal first, groups cut from that order: needs g_idx
  kStatic,      // the same order, but scales of the original groups: no g_idx
  kGroupAware,  // sorted inside each group, groups by their largest: no g_idx
};

struct GptqOptions {
  GridSpec grid;
  ActOrder order = ActOrder::kNone;
  double damp = 0.01;  // share of the mean diagonal that is added to it, 0..1
  // When the damped matrix is still not positive definite: larger shares, each tried in turn; empty = give up at once.
  std::vector<double> damp_ladder = {0.03, 0.1, 0.3, 1.0};
  bool f64 = false;              // factor and updates in f64
  bool search_grid = false;      // shrink search for each group's grid instead of its extremes
  bool weighted_search = false;  // the search weighs errors by the diagonal of the Gram matrix
  ShrinkSearch search;
  double alpha = 0.25;  // GPTAQ: share of the correction, 0..1
};

struct GptqResult {
  GridWeight weight;
  // Sum of squared errors tr(dW H dW^T) under the damped Gram matrix; for GPTAQ against the corrected weights.
  double loss = 0;
  double damp = 0;           // the share that was used
  int64_t dead_columns = 0;  // inputs that were zero in every token: rounded to nearest
};

// weight: [N, K]; gram: [K, K] sums of x x^T (GramSum), only relative size matters; shift: [K, K] from ShiftSum over
// the same tokens, or empty for plain GPTQ.
absl::StatusOr<GptqResult> SolveGptq(absl::Span<const float> weight, int64_t N, int64_t K, absl::Span<const float> gram,
                                     absl::Span<const float> shift, const GptqOptions& options, ThreadPool& threads);

// What of each input's energy the inputs that come after it in the solver's order cannot make up for: [K], in units of
// the Gram matrix. The error that the solver leaves is about the sum over weights of their squared rounding error times
// this, where plain rounding leaves it times the diagonal.
absl::StatusOr<std::vector<float>> RemainingEnergy(absl::Span<const float> gram, int64_t K, const GptqOptions& options,
                                                   ThreadPool& threads);

}  // namespace sage
