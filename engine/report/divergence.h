// Sums of a report over scored positions: perplexities, KL divergence and agreement of two models on the same tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/base/json.h"

namespace sage {

class Divergence {
 public:
  // Logits of both models at one position, and the id that followed. INTERNAL (NON_FINITE_LOGITS).
  absl::Status Add(absl::Span<const float> quantized, absl::Span<const float> reference, int32_t next);
  void EndWindow();

  int64_t scored() const { return scored_; }
  // {quantized, reference, ratio, interval}: interval is the paired 95 % interval of the ratio over windows (Student's
  // t), null for fewer than two windows.
  Json Perplexity() const;
  // {mean, median, p90, p99, p999, max} in nats, KL(reference || quantized).
  Json Kl() const;
  double Top1Agreement() const;

 private:
  int64_t scored_ = 0, agreed_ = 0, window_scored_ = 0;
  double nll_quantized_ = 0, nll_reference_ = 0, window_delta_ = 0, kl_sum_ = 0;
  std::vector<double> window_deltas_;  // mean NLL difference of each window
  std::vector<float> kl_;              // of each position
};

}  // namespace sage
