// Round to nearest with ranges straight from the weights (also called rtn). Activations are not needed; when they are
// shown, their running extremes over all batches are kept for static activation scales.
#include <algorithm>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/api/calibrator.h"
#include "engine/base/status.h"

namespace sage::calibrators {
namespace {

class MinMaxState : public CalibratorState {
 public:
  explicit MinMaxState(int64_t K)
      : K_(K),
        min_(static_cast<size_t>(K), std::numeric_limits<float>::infinity()),
        max_(static_cast<size_t>(K), -std::numeric_limits<float>::infinity()) {}

  absl::Status Observe(const StepValue& input) override {
    if (input.K != K_ || input.M < 0 || (input.M > 0 && input.data == nullptr)) {
      return MakeError(absl::StatusCode::kInvalidArgument, "BAD_CALIBRATION_INPUT",
                       absl::StrCat("minmax: the input must have K=", K_, " values a row, got ", input.K));
    }
    for (int64_t m = 0; m < input.M; ++m) {
      const float* row = input.data + m * input.stride;
      for (int64_t k = 0; k < K_; ++k) {
        if (!(row[k] - row[k] == 0.0f)) {
          return MakeError(absl::StatusCode::kInvalidArgument, "NON_FINITE_ACTIVATION",
                           absl::StrCat("minmax: activations must be finite, got ", row[k], " at input ", k));
        }
        float& low = min_[static_cast<size_t>(k)];
        float& high = max_[static_cast<size_t>(k)];
        low = std::min(low, row[k]);
        high = std::max(high, row[k]);
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<LayerPlan> Solve(const TensorView& weight, const LinearSpec& spec, ThreadPool& threads) override {
    if (weight.shape.size() != 2 || weight.dim(1) != K_) {
      return MakeError(absl::StatusCode::kInvalidArgument, "BAD_WEIGHT",
                       absl::StrCat("minmax: the weight must be [N, ", K_, "], got ", ShapeText(weight.shape)));
    }
    return LayerPlan();  // empty: the strategy takes the range from the weights
  }

 private:
  int64_t K_;
  std::vector<float> min_, max_;  // [K] running extremes of each input over all batches
};

absl::StatusOr<std::unique_ptr<CalibratorState>> Start(const LinearSpec& spec, int64_t N, int64_t K) {
  if (N < 1 || K < 1) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_LAYER_SHAPE",
                     absl::StrCat("minmax: N and K must be positive, got N=", N, ", K=", K));
  }
  return std::unique_ptr<CalibratorState>(new MinMaxState(K));
}

}  // namespace

extern const CalibratorDef kMinmax;
const CalibratorDef kMinmax = {
    .name = "minmax",
    .summary = "round to nearest, ranges from the weights; no calibration data needed",
    .needs_activations = false,
    .start = Start,
};

}  // namespace sage::calibrators
