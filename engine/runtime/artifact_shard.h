// One safetensors file of an artifact, written so that it is either complete or absent, with a sha256 for every tensor.
//
// Layout: u64 little-endian header length, JSON header {name: {dtype, shape, data_offsets}, "__metadata__": {"format":
// "pt"}} padded with spaces to a multiple of 8, then the tensors, larger element types first so that each is aligned,
// then by name. Source: the safetensors format description. The bytes depend on names and values only.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/cancel.h"
#include "engine/base/json.h"
#include "engine/runtime/artifact_source.h"

namespace sage {

struct TensorRecord {
  std::string name;
  int64_t bytes = 0;
  std::string sha256;
};

struct ShardRecord {
  std::string file;                   // name without folder
  int64_t bytes = 0;                  // of the file
  std::string sha256;                 // of the file
  std::vector<TensorRecord> tensors;  // by name
};

// Writes folder/file.tmp, fsyncs, renames and fsyncs the folder. INVALID_ARGUMENT on a duplicate name.
absl::StatusOr<ShardRecord> WriteShard(const std::string& folder, const std::string& file,
                                       std::vector<NamedTensor> tensors);

Json ShardToJson(const ShardRecord& shard);
absl::StatusOr<ShardRecord> ShardFromJson(const Json& json);

// True when the file is there with the recorded size and sha256.
bool ShardIsIntact(const std::string& folder, const ShardRecord& shard);

// sha256 of every tensor of a safetensors file, by name. INVALID_ARGUMENT on a malformed file.
absl::StatusOr<std::map<std::string, std::string>> HashTensors(const std::string& path, const CancelToken& cancel);

// "model-00003-of-00031.safetensors" for the third shard.
std::string ShardFileName(int64_t shard, int64_t count);

}  // namespace sage
