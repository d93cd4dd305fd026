// Log-softmax in f64, one pass over both rows of logits.
#include "engine/report/divergence.h"

#include <algorithm>
#include <cmath>

#include "engine/base/status.h"
#include "engine/runtime/logprobs.h"

namespace sage {
namespace {

// Two-sided 95 % points of Student's t for 1..30 degrees of freedom.
constexpr double kStudent[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
                               2.201,  2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
                               2.080,  2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042};

double StudentPoint(size_t degrees) {
  return degrees <= 30 ? kStudent[degrees - 1] : 1.96 + 2.4 / static_cast<double>(degrees);
}

double Quantile(const std::vector<float>& sorted, double p) {
  if (sorted.empty()) return 0;
  const double at = p * static_cast<double>(sorted.size() - 1);
  const size_t low = static_cast<size_t>(at), high = std::min(low + 1, sorted.size() - 1);
  const double share = at - static_cast<double>(low);
  return sorted[low] * (1 - share) + sorted[high] * share;
}

}  // namespace

absl::Status Divergence::Add(absl::Span<const float> quantized, absl::Span<const float> reference, int32_t next) {
  SAGE_ASSIGN_OR_RETURN(const double zq, LogNormalizer(quantized));
  SAGE_ASSIGN_OR_RETURN(const double zr, LogNormalizer(reference));
  double kl = 0;
  size_t top_q = 0, top_r = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    const double lr = reference[i] - zr;
    if (lr > -60) kl += std::exp(lr) * (lr - (quantized[i] - zq));
    if (quantized[i] > quantized[top_q]) top_q = i;
    if (reference[i] > reference[top_r]) top_r = i;
  }
  kl = std::max(kl, 0.0);
  const size_t id = static_cast<size_t>(next);
  const double nq = zq - quantized[id], nr = zr - reference[id];
  nll_quantized_ += nq;
  nll_reference_ += nr;
  window_delta_ += nq - nr;
  kl_sum_ += kl;
  kl_.push_back(static_cast<float>(kl));
  agreed_ += top_q == top_r ? 1 : 0;
  ++scored_;
  ++window_scored_;
  return absl::OkStatus();
}

void Divergence::EndWindow() {
  if (window_scored_ > 0) window_deltas_.push_back(window_delta_ / static_cast<double>(window_scored_));
  window_delta_ = 0;
  window_scored_ = 0;
}

Json Divergence::Perplexity() const {
  const double n = static_cast<double>(std::max<int64_t>(1, scored_));
  const double q = std::exp(nll_quantized_ / n), r = std::exp(nll_reference_ / n);
  Json interval = nullptr;
  const size_t windows = window_deltas_.size();
  if (windows >= 2) {
    double mean = 0, squares = 0;
    for (const double d : window_deltas_) mean += d / static_cast<double>(windows);
    for (const double d : window_deltas_) squares += (d - mean) * (d - mean);
    const double error = std::sqrt(squares / static_cast<double>(windows - 1) / static_cast<double>(windows));
    const double reach = StudentPoint(windows - 1) * error;
    interval = {std::exp(mean - reach), std::exp(mean + reach)};
  }
  return {{"quantized", q}, {"reference", r}, {"ratio", q / r}, {"interval", interval}};
}

Json Divergence::Kl() const {
  std::vector<float> sorted = kl_;
  std::sort(sorted.begin(), sorted.end());
  const double n = static_cast<double>(std::max<int64_t>(1, scored_));
  return {{"mean", kl_sum_ / n},
          {"median", Quantile(sorted, 0.5)},
          {"p90", Quantile(sorted, 0.9)},
          {"p99", Quantile(sorted, 0.99)},
          {"p999", Quantile(sorted, 0.999)},
          {"max", sorted.empty() ? 0.0f : sorted.back()}};
}

double Divergence::Top1Agreement() const {
  return scored_ == 0 ? 0 : static_cast<double>(agreed_) / static_cast<double>(scored_);
}

}  // namespace sage
