// The artifact folder: a Hugging Face folder that others can load, plus sage_quant.json that says how it came to be.
//
//   model-*.safetensors, model.safetensors.index.json   the weights
//   config.json (with quantization_config), generation_config.json, tokenizer files
//   sage_quant.json   written last: calibration record, kernel bindings, KV plan, provenance, sha256 of every tensor
//   and file
//
// Nothing in the folder depends on time, threads or the folder's own name: the same spec on the same source gives the
// same bytes.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/engine.h"
#include "engine/base/json.h"
#include "engine/runtime/artifact_shard.h"
#include "engine/runtime/artifact_source.h"

namespace sage {

inline constexpr char kEngineVersion[] = "0.1.0";
inline constexpr int kArtifactFormatVersion = 1;
inline constexpr char kManifestFile[] = "sage_quant.json";

// sage_quant.json of a folder. NOT_FOUND (NO_MANIFEST) when there is none.
absl::StatusOr<Json> ReadManifest(const std::string& folder);

// The text at a place of a manifest ("/provenance/sha256"); "" when there is none or it is no text.
std::string ManifestText(const Json& manifest, const std::string& pointer);

// The config.json of an artifact: the source's without its own quantization and row-order marks; `quantization` may be
// null.
Json ArtifactConfig(const ArtifactSource& source, const Json& quantization, DType float_dtype);

// Copies tokenizer files of a source folder, or writes tokenizer.json and tokenizer_config.json made from GGUF
// metadata. Returns the names written; none when the source has no tokenizer.
absl::StatusOr<std::vector<std::string>> WriteTokenizerFiles(const ArtifactSource& source, const std::string& folder);

// model.safetensors.index.json, config.json and generation_config.json.
absl::Status WriteModelFiles(const std::string& folder, const ArtifactSource& source, const Json& config,
                             const std::vector<ShardRecord>& shards);

// name -> sha256 of every regular file of the folder but the manifest and the shards.
absl::StatusOr<Json> HashSideFiles(const std::string& folder, const std::vector<ShardRecord>& shards);

// Deletes everything in a folder but the shards.
absl::Status RemoveAllBut(const std::string& folder, const std::vector<ShardRecord>& shards);

// Moves a finished folder to its place: a rename, or (across file systems) a copy beside the target and a rename.
// ALREADY_EXISTS when something is there.
absl::Status PublishFolder(const std::string& staged, const std::string& target);

// An exclusive lock on a path, released when the object goes or the process dies.
class FolderLock {
 public:
  // ABORTED (OPERATION_IN_PROGRESS) when another process or thread holds it.
  static absl::StatusOr<std::unique_ptr<FolderLock>> Take(const std::string& path);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  FolderLock(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_;
  std::string path_;
};

}  // namespace sage
