// The "quantization_config" of compressed-tensors folders that we write (quantization.md 1.4).
#pragma once

#include <string>
#include <vector>

#include "engine/api/linear_strategy.h"

namespace sage {

// pack-quantized (integers, 16-bit activations), int-quantized (integers one byte each, dynamic 8-bit activations) or
// float-quantized (fp8). UNIMPLEMENTED for a strategy that compressed-tensors has no format for.
absl::StatusOr<Json> CompressedTensorsConfig(const LinearSpec& spec, const LinearStrategyDef& strategy,
                                             const std::vector<std::string>& ignored);

}  // namespace sage
