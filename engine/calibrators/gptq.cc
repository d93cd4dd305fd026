// GPTQ: weights are rounded column by column and the columns not yet rounded make up for each error (quantization.md
// 2.2), then codes and scales descend on the same loss. act_order takes the inputs with the largest energy first: with
// g_idx where the strategy stores it, else with the scales of the original groups.
#include "engine/api/refined_gptq.h"

namespace sage::calibrators {

extern const CalibratorDef kGptq;
const CalibratorDef kGptq = {
    .name = "gptq",
    .summary = "second-order rounding, each column's error made up for by the others; needs calibration text",
    .needs_activations = true,
    .solve = PlanRefinedGptq,
    .compensates = true,
    .solves_by_gptq = true,
    .integer_grid = true,
};

}  // namespace sage::calibrators
