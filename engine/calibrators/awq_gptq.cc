// AWQ's scales, then GPTQ on the scaled weights: the two take different parts of the error.
#include "engine/api/refined_gptq.h"

namespace sage::calibrators {

extern const CalibratorDef kAwqGptq;
const CalibratorDef kAwqGptq = {
    .name = "awq+gptq",
    .summary = "activation-aware scales, then second-order rounding; needs calibration text",
    .needs_activations = true,
    .choose_scales = ChooseScalesForGptq,
    .solve = PlanRefinedGptq,
    .compensates = true,
    .solves_by_gptq = true,
    .integer_grid = true,
};

}  // namespace sage::calibrators
