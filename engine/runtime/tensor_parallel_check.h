// Whether the layers of a calibration can be cut into the shards of tensor parallelism without splitting a group of
// inputs: what servers find out only when they load the checkpoint.
#pragma once

#include <vector>

#include "engine/runtime/calibrate_plan.h"

namespace sage {

// Row-parallel layers (o_proj, down_proj) are cut along their inputs: K / shards must be whole and a multiple of the
// group size, and groups must lie as they come (a g_idx of act-order lets every group cross the cut). The others are
// cut along their outputs, attention by kv heads. INVALID_ARGUMENT (TENSOR_PARALLEL_GROUPS, ..._ACT_ORDER, ..._SHAPE)
// names the layer and the sizes that work.
absl::Status CheckTensorParallel(const CalibrationPlan& plan, const std::vector<LinearSlot>& slots, int shards);

}  // namespace sage
