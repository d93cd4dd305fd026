// Counting, growing, and the three range searches.
#include "engine/solvers/histogram.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

constexpr int64_t kFirstCandidate = 128;

absl::Status CheckRange(const Histogram& histogram, int bits) {
  if (histogram.count() == 0) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "NO_ACTIVATIONS",
                     "activation range: at least one value must have been observed, got none");
  }
  if (bits < 2 || bits > 8) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_BITS",
                     absl::StrCat("activation range: bits must be 2..8, got ", bits));
  }
  return absl::OkStatus();
}

// The edge above bin i - 1, but never beyond what was seen.
double Edge(const Histogram& histogram, int64_t i) {
  return std::min(histogram.max(), static_cast<double>(i) * histogram.width());
}

}  // namespace

Histogram::Histogram(int64_t bins) : first_bins_(std::clamp<int64_t>(bins, kFirstCandidate, kMostBins)) {}

void Histogram::Grow(double most) {
  max_ = std::max(max_, most);
  if (max_ == 0) return;
  if (width_ == 0) {
    width_ = max_ / static_cast<double>(first_bins_);
    if (width_ == 0) width_ = std::numeric_limits<double>::min();
    bins_.assign(first_bins_, 0);
    bins_[0] = zeros_;
  }
  while (max_ / width_ > static_cast<double>(kMostBins)) {
    const int64_t half = (static_cast<int64_t>(bins_.size()) + 1) / 2;
    for (int64_t i = 0; i < half; ++i) {
      const int64_t second = 2 * i + 1 < static_cast<int64_t>(bins_.size()) ? bins_[2 * i + 1] : 0;
      bins_[i] = bins_[2 * i] + second;
    }
    bins_.resize(half);
    width_ *= 2;
  }
  const int64_t needed = std::min(kMostBins, static_cast<int64_t>(std::ceil(max_ / width_)));
  if (needed > static_cast<int64_t>(bins_.size())) bins_.resize(needed);
}

absl::Status Histogram::Add(const float* x, int64_t count) {
  float most = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(x[i])) {
      return MakeError(absl::StatusCode::kInvalidArgument, "NON_FINITE_ACTIVATION",
                       absl::StrCat("histogram: activations must be finite, got ", x[i], " at ", i));
    }
    most = std::max(most, std::fabs(x[i]));
  }
  Grow(static_cast<double>(most));
  count_ += count;
  if (width_ == 0) {
    zeros_ += count;
    return absl::OkStatus();
  }
  const int64_t last = static_cast<int64_t>(bins_.size()) - 1;
  const double per_width = 1.0 / width_;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t bin = static_cast<int64_t>(static_cast<double>(std::fabs(x[i])) * per_width);
    ++bins_[std::min(bin, last)];
  }
  return absl::OkStatus();
}

absl::StatusOr<double> PercentileRange(const Histogram& histogram, double percent) {
  SAGE_RETURN_IF_ERROR(CheckRange(histogram, 8));
  if (!(percent > 0 && percent <= 100)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_PERCENTILE",
                     absl::StrCat("activation range: the percentile must be above 0 and at most 100, got ", percent));
  }
  if (percent == 100 || histogram.max() == 0) return histogram.max();
  const double wanted = static_cast<double>(histogram.count()) * percent / 100.0;
  int64_t sum = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(histogram.bins().size()); ++i) {
    sum += histogram.bins()[i];
    if (static_cast<double>(sum) >= wanted) return Edge(histogram, i + 1);
  }
  return histogram.max();
}

absl::StatusOr<double> MseRange(const Histogram& histogram, int bits) {
  SAGE_RETURN_IF_ERROR(CheckRange(histogram, bits));
  if (histogram.max() == 0) return 0.0;
  const std::vector<int64_t>& bins = histogram.bins();
  const int64_t size = static_cast<int64_t>(bins.size());
  const double levels = static_cast<double>((1 << (bits - 1)) - 1);
  double best = histogram.max(), least = std::numeric_limits<double>::infinity();
  // At most 2048 candidates, evenly placed, so that a histogram that grew a lot still takes a moment.
  const int64_t step = std::max<int64_t>(1, size / 2048);
  for (int64_t c = std::min(size, kFirstCandidate); c <= size; c += step) {
    const double range = Edge(histogram, c), scale = range / levels;
    double error = 0;
    for (int64_t i = 0; i < size && error < least; ++i) {
      if (bins[i] == 0) continue;
      const double centre = (static_cast<double>(i) + 0.5) * histogram.width();
      const double code = std::min(levels, std::nearbyint(centre / scale));
      error += static_cast<double>(bins[i]) * (centre - code * scale) * (centre - code * scale);
    }
    if (error < least) {
      least = error;
      best = range;
    }
  }
  return best;
}

namespace {

// Divergence of counts[0, size) with `tail` added to the last from its collapse to `levels`.
double Divergence(const std::vector<double>& counts, int64_t size, double tail, double total, int64_t levels) {
  double sum = 0, candidate_total = 0;
  // The candidate leaves the tail out, so its own total normalises it.
  for (int64_t i = 0; i < size; ++i) candidate_total += counts[i];
  if (candidate_total == 0) return std::numeric_limits<double>::infinity();
  for (int64_t level = 0; level < levels; ++level) {
    const int64_t begin = size * level / levels, end = size * (level + 1) / levels;
    double mass = 0;
    int64_t filled = 0;
    for (int64_t i = begin; i < end; ++i) {
      mass += counts[i];
      filled += counts[i] > 0;
    }
    for (int64_t i = begin; i < end; ++i) {
      const double reference = counts[i] + (i == size - 1 ? tail : 0);
      if (reference == 0) continue;
      // Values beyond an empty last bin have no counterpart: this range is impossible.
      if (counts[i] == 0) return std::numeric_limits<double>::infinity();
      const double p = reference / total, q = mass / static_cast<double>(filled) / candidate_total;
      sum += p * std::log(p / q);
    }
  }
  return sum;
}

}  // namespace

absl::StatusOr<double> KlRange(const Histogram& histogram, int bits) {
  SAGE_RETURN_IF_ERROR(CheckRange(histogram, bits));
  if (histogram.max() == 0) return 0.0;
  std::vector<double> counts(histogram.bins().begin(), histogram.bins().end());
  const int64_t size = static_cast<int64_t>(counts.size()), levels = int64_t{1} << (bits - 1);
  // Exact zeros (padding, gated activations) would outweigh everything else in the first bin.
  if (size > 1) counts[0] = counts[1];
  double total = 0;
  for (const double c : counts) total += c;
  const int64_t step = std::max<int64_t>(1, size / 2048);
  double best = histogram.max(), least = std::numeric_limits<double>::infinity(), inside = 0;
  int64_t summed = 0;
  for (int64_t c = std::min(size, kFirstCandidate); c <= size; c += step) {
    for (; summed < c; ++summed) inside += counts[summed];
    const double divergence = Divergence(counts, c, total - inside, total, std::min(levels, c));
    if (divergence <= least && std::isfinite(divergence)) {
      least = divergence;
      best = Edge(histogram, c);
    }
  }
  return best;
}

}  // namespace sage
