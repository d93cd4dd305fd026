// Round to nearest with ranges straight from the weights (also called rtn). Needs no activations.
#include "absl/strings/str_cat.h"
#include "engine/api/calibrator.h"
#include "engine/base/status.h"

namespace sage::calibrators {
namespace {

absl::StatusOr<LayerPlan> Solve(const InputStatistics&, const TensorView& weight, const LinearSpec&,
                                const LinearStrategyDef&, ThreadPool&) {
  if (weight.shape.size() != 2) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_WEIGHT",
                     absl::StrCat("minmax: the weight must be [N, K], got ", ShapeText(weight.shape)));
  }
  return LayerPlan();  // the strategy takes the range from the weights
}

}  // namespace

extern const CalibratorDef kMinmax;
const CalibratorDef kMinmax = {
    .name = "minmax",
    .summary = "round to nearest, ranges from the weights; no calibration data needed",
    .needs_activations = false,
    .solve = Solve,
};

}  // namespace sage::calibrators
