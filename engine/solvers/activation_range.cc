// Extremes over batches, and their cut by histogram.
#include "engine/solvers/activation_range.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/quant/integer_grid.h"

namespace sage {

RangeObserver::RangeObserver(const RangeSpec& spec, int64_t bins) : spec_(spec) {
  if (spec.rule != RangeRule::kMinMax) histogram_.emplace(bins);
}

absl::Status RangeObserver::Add(const float* x, int64_t count) {
  float low = low_, high = high_;
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(x[i])) {
      return MakeError(absl::StatusCode::kInvalidArgument, "NON_FINITE_ACTIVATION",
                       absl::StrCat("activation range: values must be finite, got ", x[i], " at ", i));
    }
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  if (histogram_.has_value()) SAGE_RETURN_IF_ERROR(histogram_->Add(x, count));
  low_ = low;
  high_ = high;
  count_ += count;
  return absl::OkStatus();
}

double RangeObserver::absmax() const { return std::max(-static_cast<double>(low_), static_cast<double>(high_)); }

absl::StatusOr<ActivationRange> RangeObserver::Solve(int bits) const {
  if (count_ == 0) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "NO_ACTIVATIONS",
                     "activation range: at least one value must have been observed, got none");
  }
  double limit = absmax();
  if (spec_.rule == RangeRule::kPercentile) {
    SAGE_ASSIGN_OR_RETURN(limit, PercentileRange(*histogram_, spec_.percentile));
  } else if (spec_.rule == RangeRule::kMse) {
    SAGE_ASSIGN_OR_RETURN(limit, MseRange(*histogram_, bits));
  } else if (spec_.rule == RangeRule::kKl) {
    SAGE_ASSIGN_OR_RETURN(limit, KlRange(*histogram_, bits));
  }
  return ActivationRange{std::max(static_cast<double>(low_), -limit), std::min(static_cast<double>(high_), limit)};
}

namespace {

float Stored(double scale, DType dtype) {
  const float rounded = RoundToDType(static_cast<float>(scale), dtype);
  return std::isfinite(rounded) ? std::max(rounded, MachineEpsilon(DType::kF32)) : static_cast<float>(scale);
}

}  // namespace

StaticGrid GridOfRange(const ActivationRange& range, bool symmetric, DType dtype) {
  StaticGrid out;
  out.scale = Stored(symmetric ? range.most() / 127.0 : (range.high - range.low) / 255.0, dtype);
  if (!symmetric) {
    const double zero = std::nearbyint(-range.low / static_cast<double>(out.scale)) - 128.0;
    out.zero = static_cast<float>(std::clamp(zero, -128.0, 127.0));
  }
  return out;
}

float FloatScaleOfRange(const ActivationRange& range, float largest, DType dtype) {
  return Stored(range.most() / static_cast<double>(largest), dtype);
}

}  // namespace sage
