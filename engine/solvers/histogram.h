// A growing histogram of |x| over all calibration batches, and the range of a static activation scale found in it by
// percentile, squared error or Kullback-Leibler divergence.
//
// The first batch that is not all zero sets the bin width (its largest |x| over the bins asked for); a later, larger
// value appends bins of the same width. When that would take more than kMostBins, neighbouring bins are merged in pairs
// and the width doubles, so memory stays bounded whatever arrives.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sage {

constexpr int64_t kMostBins = 1 << 16;

class Histogram {
 public:
  explicit Histogram(int64_t bins = 2048);
  // INVALID_ARGUMENT (NON_FINITE_ACTIVATION) leaves the histogram as it was.
  absl::Status Add(const float* x, int64_t count);

  int64_t count() const { return count_; }
  double max() const { return max_; }  // largest |x| seen
  double width() const { return width_; }
  const std::vector<int64_t>& bins() const { return bins_; }

 private:
  void Grow(double most);
  int64_t first_bins_;
  std::vector<int64_t> bins_;
  int64_t count_ = 0, zeros_ = 0;  // zeros seen before there was a width
  double width_ = 0, max_ = 0;
};

// Each returns the largest |x| that the scale should hold; FAILED_PRECONDITION (NO_ACTIVATIONS) on an empty histogram,
// INVALID_ARGUMENT (BAD_PERCENTILE, BAD_BITS) on bad arguments. Inputs that were all zero give 0: the caller's grid
// turns that into its smallest scale.

// The upper edge of the first bin at which the share of values reaches percent / 100; 100 gives max().
absl::StatusOr<double> PercentileRange(const Histogram& histogram, double percent);
// The candidate (from the 128th bin up) at which values at the centres of their bins, rounded to `bits` symmetric
// signed codes and clamped, have the least mean squared error.
absl::StatusOr<double> MseRange(const Histogram& histogram, int bits);
// The candidate (from the 128th bin up) whose 2^(bits - 1) levels lose the least information: KL divergence of the
// clipped distribution, tail in its last bin, from the one spread evenly over each level. The last of equals.
absl::StatusOr<double> KlRange(const Histogram& histogram, int bits);

}  // namespace sage
