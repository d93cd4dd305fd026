// The token sequences a calibration looks at, chosen from a dataset.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "engine/runtime/dataset.h"

namespace sage {

// Up to `samples` sequences of `length` ids. The dataset's ids (TokenizeStream) are cut into windows without overlap;
// of more windows than asked for, a choice that `seed` decides, in the order of the text. A dataset shorter than one
// window is one sequence. INVALID_ARGUMENT (TOO_FEW_IDS) below 16 ids.
absl::StatusOr<std::vector<std::vector<int32_t>>> ChooseSamples(const Dataset& dataset, const TokenizerFiles* files,
                                                                int64_t samples, int64_t length, uint64_t seed);

}  // namespace sage
