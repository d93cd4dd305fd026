// Quantization-aware training, block by block: AWQ's scales and GPTQ's codes as a start, then codes, scales and norms
// of a block learn together to give what the unquantized block puts out (engine/solvers/block_training.h).
#include "engine/api/refined_gptq.h"
#include "engine/solvers/block_training.h"

namespace sage::calibrators {
namespace {

const BlockTrainingOptions kTraining;

}  // namespace

extern const CalibratorDef kQat;
const CalibratorDef kQat = {
    .name = "qat",
    .summary = "awq+gptq, then each block trained towards the unquantized one: slower; needs calibration text",
    .needs_activations = true,
    .choose_scales = ChooseScalesForGptq,
    .solve = PlanRefinedGptq,
    .compensates = true,
    .solves_by_gptq = true,
    .training = &kTraining,
    .integer_grid = true,
};

}  // namespace sage::calibrators
