// From a row of logits to one id: penalties, filters and a counter-based draw.
//
// Order: logit bias, repetition penalty (ids of prompt and output, each once; logit < 0 is multiplied, else divided),
// presence and frequency penalties (output ids), temperature, top-k (ties at the k-th kept), top-p, min-p. Greedy when
// temperature or top_p is 0; ties go to the smallest id. A draw depends on (seed, choice, position) alone, so the text
// of a seed is the same whatever else runs in the batch.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/api/engine.h"

namespace sage {

struct SamplingHistory {
  absl::Span<const int32_t> prompt_ids;
  absl::Span<const int32_t> output_ids;
};

// What is left after the filters: ids ascending, probabilities summing to 1.
struct Distribution {
  std::vector<int32_t> ids;
  std::vector<double> probabilities;
};

// INVALID_ARGUMENT naming the field, rule and value.
absl::Status CheckSampling(const SamplingSpec& spec, int64_t V);

// A number in [0, 1) that is a pure function of its arguments.
double UniformDraw(uint64_t seed, int choice, int64_t position);

// Holds scratch of one vocabulary; one sampler a worker.
class Sampler {
 public:
  // The filtered distribution; one id when greedy. INTERNAL (NON_FINITE_LOGITS) on NaN, +inf or nothing but -inf.
  absl::Status Filter(absl::Span<const float> logits, const SamplingHistory& history, const SamplingSpec& spec,
                      Distribution* out);
  absl::StatusOr<int32_t> Sample(absl::Span<const float> logits, const SamplingHistory& history,
                                 const SamplingSpec& spec, uint64_t seed, int choice, int64_t position);

 private:
  void Adjust(absl::Span<const float> logits, const SamplingHistory& history, const SamplingSpec& spec);
  void Penalise(const SamplingHistory& history, const SamplingSpec& spec);
  float KthLargest(int64_t k);
  void KeepNucleus(double top_p, Distribution* out);

  std::vector<float> adjusted_;  // [V]
  std::vector<int32_t> counts_;  // [V], all zero between calls
  std::vector<float> heap_;
  std::vector<std::pair<double, int32_t>> bucket_;
  Distribution drawn_;
};

// Convenience for callers without a sampler of their own.
absl::StatusOr<Distribution> FilteredDistribution(absl::Span<const float> logits, const SamplingHistory& history,
                                                  const SamplingSpec& spec);

}  // namespace sage
