// AWQ's scales and clipping as the calibrators use them (quantization.md 2.1).
#pragma once

#include <vector>

#include "engine/api/calibrator.h"

namespace sage {

struct AwqChoice;  // engine/solvers/scale_search.h
InputScales ScalesOf(AwqChoice choice);

// The scales with the least output error of 20 steps, with and without duo scaling; all one when none helps.
absl::StatusOr<InputScales> ChooseAwqScales(const SharedInput& shared, ThreadPool& threads);
// Clip search for every (row, group), then round to nearest.
absl::StatusOr<LayerPlan> SolveClipped(const InputStatistics& input, const TensorView& weight, const LinearSpec& spec,
                                       const LinearStrategyDef& strategy, ThreadPool& threads);
// SmoothQuant: the alpha in 0.3 .. 0.95 with the least error on sample tokens when activations take 8 bits too.
absl::StatusOr<InputScales> ChooseSmoothScales(const SharedInput& shared, ThreadPool& threads);

}  // namespace sage
