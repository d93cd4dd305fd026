// Building blocks of AWQ and SmoothQuant: input statistics, candidate scales of inputs, fake quantization of scaled
// weights, its error on sample inputs or through the Gram matrix, and the search of clipping limits.
//
// A scale s_j multiplies column j of the weights and divides input j, so the layer's output is the same before
// rounding.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/solvers/grid_weight.h"

namespace sage {

// One of the linear layers that share an input of K values.
struct LayerWeight {
  absl::Span<const float> values;  // [N, K]
  int64_t N = 0;
};

// Mean and largest |x_j| of every input over all tokens; f64 sums in token order, so batches and threads change
// nothing.
class InputMagnitude {
 public:
  explicit InputMagnitude(int64_t K) : K_(K), sum_(K), max_(K) {}
  // x: [M, K] rows of `stride` values. INVALID_ARGUMENT (NON_FINITE_ACTIVATION) leaves the statistics as they were.
  absl::Status Add(const float* x, int64_t M, int64_t stride, ThreadPool& threads);
  int64_t tokens() const { return tokens_; }
  std::vector<float> Mean() const;
  const std::vector<float>& Max() const { return max_; }

 private:
  int64_t K_, tokens_ = 0;
  std::vector<double> sum_;
  std::vector<float> max_;
};

// Duo scaling: mean over all rows of |w_ij| / (largest |w| of its group + 1e-6).
std::vector<float> MeanOfWeights(absl::Span<const LayerWeight> layers, int64_t K, int64_t group_size);
// Largest |w_ij| over all rows.
std::vector<float> MaxOfWeights(absl::Span<const LayerWeight> layers, int64_t K);

// AWQ's candidate: x_mean^ratio, with duo scaling over w_mean^(1 - ratio) + 1e-4 (w_mean empty: without); at least
// 1e-4, normalised to sqrt(max * min) = 1, entries that are not finite become 1.
std::vector<float> AwqScales(absl::Span<const float> x_mean, absl::Span<const float> w_mean, double ratio);
// SmoothQuant: x_max^alpha / w_max^(1 - alpha), both and the result at least 1e-5.
std::vector<float> SmoothScales(absl::Span<const float> x_max, absl::Span<const float> w_max, double alpha);

// Q(W diag(s)) diag(1/s) on the project's grid; scales: [K] or empty (all one). The layer as it will compute.
absl::StatusOr<std::vector<float>> FakeQuantize(absl::Span<const float> weight, int64_t N, int64_t K,
                                                absl::Span<const float> scales, const GridSpec& spec,
                                                ThreadPool& threads);
// Summed squared difference of the outputs x A^T and x B^T over M sample tokens: for few tokens cheaper than GramError.
double OutputError(absl::Span<const float> a, absl::Span<const float> b, int64_t N, int64_t K, const float* x,
                   int64_t M, ThreadPool& threads);

enum class AwqCandidates { kActivations, kDuo, kBoth };

struct AwqChoice {
  std::vector<float> scales;  // [K], all one when no candidate is better
  double ratio = 0;
  bool duo = false;
  bool identity = true;
  double error = 0;           // of the choice, summed over the layers
  double identity_error = 0;  // of plain rounding
};

// Tries plain rounding first, then ratios i / steps, i = 0..steps - 1 (every third, then the neighbours of the best),
// and keeps the least error under the Gram matrix [K, K] of the shared input. Errors are those of at most 256 rows of
// each layer, at even strides; on them the choice is never worse than plain rounding.
absl::StatusOr<AwqChoice> SearchAwqScales(absl::Span<const LayerWeight> layers, int64_t K,
                                          absl::Span<const float> x_mean, absl::Span<const float> gram,
                                          const GridSpec& spec, int steps, AwqCandidates candidates,
                                          ThreadPool& threads);

// The same for a solver that makes up for errors (gptq.h): the error of a candidate is the sum of squared rounding
// errors times `energy` [K] (RemainingEnergy), and its root is a second magnitude of the inputs beside x_mean.
absl::StatusOr<AwqChoice> SearchCompensatedScales(absl::Span<const LayerWeight> layers, int64_t K,
                                                  absl::Span<const float> x_mean, absl::Span<const float> energy,
                                                  const GridSpec& spec, int steps, ThreadPool& threads);

struct SmoothChoice {
  std::vector<float> scales;  // [K]
  double alpha = 0;
  double error = 0;
  double identity_error = 0;  // without smoothing
};

// The alpha whose scales give the least output error on M sample tokens x [M, K] when weights take `spec` and inputs
// are rounded to `activation_bits` per token (symmetric, largest |x| is the largest code).
absl::StatusOr<SmoothChoice> SearchSmoothAlpha(absl::Span<const LayerWeight> layers, int64_t K,
                                               absl::Span<const float> x_max, const float* x, int64_t M,
                                               const GridSpec& spec, int activation_bits,
                                               absl::Span<const double> alphas, ThreadPool& threads);

struct ClipChoice {
  std::vector<float> limit;  // [N, G] largest |w| to keep
  double error = 0;          // summed over rows and groups, each under its own block of the Gram matrix
  double whole_error = 0;    // without clipping
};

// AWQ's clip search: for each (row, group) the limit amax * (1 - t / 20), t = 0..9, with the least error of the group's
// share of the output, d^T H_gg d. Clamp the weights with ClipWeights, then quantize.
absl::StatusOr<ClipChoice> SearchClip(absl::Span<const float> weight, int64_t N, int64_t K,
                                      absl::Span<const float> gram, const GridSpec& spec, ThreadPool& threads);
void ClipWeights(float* weight, int64_t N, int64_t K, absl::Span<const float> limit);

}  // namespace sage
