// Calibration whose artifact is a GGUF: codes are chosen by the method on integers in groups of 32, which Q4_0, Q4_1
// and Q8_0 hold; K types have scales of their own and take plain weights only.
#pragma once

#include "engine/runtime/operations.h"

namespace sage {

// spec.format is a GGUF word (gguf_scheme.h). INVALID_ARGUMENT where words contradict it: METHOD_NEEDS_INTEGER_GRID,
// FIELD_NOT_SUPPORTED.
absl::StatusOr<CalibrationResult> CalibrateGguf(const CalibrationSpec& spec, ThreadPool& threads,
                                                const CancelToken& cancel, const ProgressFn& progress);

}  // namespace sage
