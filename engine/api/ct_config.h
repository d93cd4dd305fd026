// The "quantization_config" of compressed-tensors folders that we write (quantization.md 1.4).
#pragma once

#include <string>
#include <vector>

#include "engine/api/checkpoint_format.h"
#include "engine/api/linear_strategy.h"

namespace sage {

// pack-quantized (integers with 16-bit activations, 4 bits with 8-bit ones), int-quantized (8-bit integers with 8-bit
// activations) or
// float-quantized (fp8). UNIMPLEMENTED for a strategy that compressed-tensors has no format for.
absl::StatusOr<Json> CompressedTensorsConfig(const LinearSpec& spec, const LinearStrategyDef& strategy,
                                             const std::vector<std::string>& ignored);

// kv_cache_scheme: static symmetric 8-bit floats or integers with a scale for each layer's K and V, or each kv head.
Json CompressedTensorsKvScheme(bool floats, bool by_head);
// input_activations with one scale for a linear's input.
Json CompressedTensorsStaticActivations(bool floats, bool symmetric);
// A folder of plain weights whose only quantized part is the KV cache.
Json CompressedTensorsKvOnlyConfig(const Json& scheme);
// One config group for each part, its modules named: readers prefer a name to the class "Linear" of group_0.
absl::StatusOr<Json> MergeCompressedTensorsConfigs(Json config, const std::vector<MixedModules>& mixed);

}  // namespace sage
