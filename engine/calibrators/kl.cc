// Static activation ranges by Kullback-Leibler divergence; weights are rounded to nearest.
//
// Source: the histogram search of quantization.md 2.4. The range itself is found by the calibration loop, which shows
// every batch to engine/solvers/activation_range.h; this record only says what happens to the weights.
#include "engine/api/calibrator.h"

namespace sage::calibrators {
namespace {

absl::StatusOr<LayerPlan> Solve(const InputStatistics&, const TensorView&, const LinearSpec&, const LinearStrategyDef&,
                                ThreadPool&) {
  return LayerPlan();  // the strategy takes the range from the weights
}

}  // namespace

extern const CalibratorDef kKl;
const CalibratorDef kKl = {
    .name = "kl",
    .summary = "static 8-bit activations (and int8 KV) cut where the distribution loses least; weights to nearest",
    .needs_activations = true,
    .solve = Solve,
};

}  // namespace sage::calibrators
