// The range [low, high] that a static 8-bit scale of activations (or of cached keys and values) should hold, found over
// all calibration batches: the extremes, or the extremes cut where a histogram of |x| says so.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/solvers/histogram.h"
#include "engine/tensor/dtype.h"

namespace sage {

enum class RangeRule { kMinMax, kPercentile, kMse, kKl };
struct RangeSpec {
  RangeRule rule = RangeRule::kMinMax;
  double percentile = 99.99;  // kPercentile: share of |x| inside the range
};

struct ActivationRange {
  double low = 0, high = 0;  // low <= 0 <= high
  double most() const { return -low > high ? -low : high; }
};

class RangeObserver {
 public:
  explicit RangeObserver(const RangeSpec& spec, int64_t bins = 2048);
  // INVALID_ARGUMENT (NON_FINITE_ACTIVATION) on a value that is not finite.
  absl::Status Add(const float* x, int64_t count);
  // FAILED_PRECONDITION (NO_ACTIVATIONS) when nothing was added. `bits` are those of a signed integer grid.
  absl::StatusOr<ActivationRange> Solve(int bits = 8) const;
  double absmax() const;  // before any cut

 private:
  RangeSpec spec_;
  std::optional<Histogram> histogram_;  // absent for kMinMax
  int64_t count_ = 0;
  float low_ = 0, high_ = 0;
};

// Scale and zero point of a signed 8-bit code for a range: x = (code - zero) * scale.
struct StaticGrid {
  float scale = 0;
  float zero = 0;
};
// Symmetric: most / 127, zero 0. Otherwise (high - low) / 255, zero = round(-low / scale) - 128. The scale is rounded
// to `dtype` first and is at least the machine epsilon of f32.
StaticGrid GridOfRange(const ActivationRange& range, bool symmetric, DType dtype);
// e4m3 or e5m2, whose largest value is `largest`: most / largest, rounded likewise.
float FloatScaleOfRange(const ActivationRange& range, float largest, DType dtype);

}  // namespace sage
