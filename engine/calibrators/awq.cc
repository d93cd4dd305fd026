// AWQ: inputs that matter get finer grids by scales folded into what makes them, then a clip search
// (quantization.md 2.1).
#include "engine/api/awq_scales.h"

namespace sage::calibrators {

extern const CalibratorDef kAwq;
const CalibratorDef kAwq = {
    .name = "awq",
    .summary = "activation-aware scales folded into the model, clip search, round to nearest; needs calibration text",
    .needs_activations = true,
    .choose_scales = ChooseAwqScales,
    .solve = SolveClipped,
    .compensates = true,
    .integer_grid = true,
};

}  // namespace sage::calibrators
