// A checkpoint's layers as msModelSlim's AscendV1 keeps them (engine/checkpoint_formats/ascend_v1.cc has the layout).
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "engine/runtime/artifact_shard.h"

namespace sage {

inline constexpr char kAscendFormat[] = "ascend_v1";
inline constexpr char kAscendDescription[] = "quant_model_description.json";

std::string AscendShardName(int64_t shard, int64_t count);

// The tensors of one linear layer; `description` gets the type of each. `wide_scales`: deq_scale as the bits in an
// int64, as for models of f16. UNIMPLEMENTED (UNSUPPORTED_OUTPUT_FORMAT) names the layer and what AscendV1 has no type
// for.
absl::StatusOr<std::vector<NamedTensor>> AscendLinear(const ArtifactSource& source, const LinearSlot& slot,
                                                      bool wide_scales, ThreadPool& threads, Json& description);

// Scales and offsets of the KV cache of one layer (C8), where the source has them; adds kv_cache_type.
absl::StatusOr<std::vector<NamedTensor>> AscendKvScales(const ArtifactSource& source, int64_t layer, Json& description);

// quant_model_description.json and the index of the weights.
absl::Status WriteAscendFiles(const std::string& folder, Json description, const std::vector<ShardRecord>& files);

}  // namespace sage
