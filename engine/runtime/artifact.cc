// Writes and checks artifact folders.
#include "engine/runtime/artifact.h"

#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/base/file_error.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact_tokenizer.h"
#include "engine/runtime/operations.h"

namespace sage {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTokenizerFiles[] = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",   "vocab.json",
    "merges.txt",     "tokenizer.model",       "tokenizer.bin",           "chat_template.jinja", "chat_template.json"};

absl::Status DataLoss(const std::string& message) {
  return MakeError(absl::StatusCode::kDataLoss, "ARTIFACT_CORRUPT", message);
}

const char* DTypeWord(DType dtype) {
  return dtype == DType::kBF16 ? "bfloat16" : dtype == DType::kF16 ? "float16" : "float32";
}

// Folders first in, first fsynced; names sorted so that a failure names the same file every time.
absl::StatusOr<std::vector<std::string>> RegularFiles(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (it->is_regular_file(ignored)) names.push_back(it->path().filename().string());
  }
  if (error) return FileError(error.value(), "cannot list", folder);
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status VerifyShards(const std::string& path, const Json& manifest, const CancelToken& cancel, int64_t& verified) {
  if (!manifest.contains("files") || !manifest["files"].is_array())
    return DataLoss("sage_quant.json: 'files' is missing");
  for (const Json& entry : manifest["files"]) {
    SAGE_ASSIGN_OR_RETURN(const ShardRecord shard, ShardFromJson(entry));
    SAGE_ASSIGN_OR_RETURN(const std::string file, JoinInside(path, shard.file));
    if (!FileExists(file)) return DataLoss(absl::StrCat(shard.file, ": named by sage_quant.json, is not there"));
    absl::StatusOr<std::map<std::string, std::string>> hashes = HashTensors(file, cancel);
    if (!hashes.ok()) {
      return absl::IsCancelled(hashes.status()) ? hashes.status() : DataLoss(std::string(hashes.status().message()));
    }
    for (const TensorRecord& tensor : shard.tensors) {
      const auto it = hashes->find(tensor.name);
      if (it == hashes->end()) return DataLoss(absl::StrCat(tensor.name, ": is not in ", shard.file));
      if (it->second != tensor.sha256) {
        return DataLoss(absl::StrCat(tensor.name, ": sha256 must be ", tensor.sha256, " by sage_quant.json, got ",
                                     it->second, " in ", shard.file));
      }
      ++verified;
    }
    if (hashes->size() != shard.tensors.size()) {
      return DataLoss(absl::StrCat(shard.file, ": holds ", hashes->size(), " tensors, sage_quant.json names ",
                                   shard.tensors.size()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Json> ReadManifest(const std::string& folder) {
  const std::string path = folder + "/" + kManifestFile;
  if (!FileExists(path)) {
    return MakeError(absl::StatusCode::kNotFound, "NO_MANIFEST",
                     absl::StrCat(folder, ": has no ", kManifestFile, "; it is no artifact of this service"));
  }
  SAGE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  SAGE_ASSIGN_OR_RETURN(Json manifest, ParseJson(text, kManifestFile));
  if (!manifest.is_object()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_MANIFEST", absl::StrCat(path, ": must be an object"));
  }
  return manifest;
}

std::string ManifestText(const Json& manifest, const std::string& pointer) {
  const Json::json_pointer place(pointer);
  if (!manifest.contains(place)) return "";
  const Json& value = manifest[place];
  return value.is_string() ? value.get<std::string>() : "";
}

Json ArtifactConfig(const ArtifactSource& source, const Json& quantization, DType float_dtype) {
  Json config = source.checkpoint().config();
  config.erase("quantization_config");
  config.erase("sage_rope_interleaved");
  // One of the two names is enough; older and newer transformers both read "torch_dtype".
  config.erase("dtype");
  config["torch_dtype"] = DTypeWord(float_dtype);
  if (source.rotation() != nullptr) config["tie_word_embeddings"] = false;
  if (!quantization.is_null()) config["quantization_config"] = quantization;
  return config;
}

absl::StatusOr<std::vector<std::string>> WriteTokenizerFiles(const ArtifactSource& source, const std::string& folder) {
  std::vector<std::string> written;
  if (source.is_gguf()) {
    SAGE_ASSIGN_OR_RETURN(const auto files, GgufTokenizerFiles(source.checkpoint().path()));
    for (const auto& [name, content] : files) {
      SAGE_RETURN_IF_ERROR(WriteFileAtomic(folder + "/" + name, content));
      written.push_back(name);
    }
    return written;
  }
  for (const char* name : kTokenizerFiles) {
    const std::string from = source.checkpoint().path() + "/" + name;
    if (!FileExists(from)) continue;
    SAGE_ASSIGN_OR_RETURN(const std::string content, ReadFile(from));
    SAGE_RETURN_IF_ERROR(WriteFileAtomic(folder + "/" + name, content));
    written.push_back(name);
  }
  return written;
}

absl::Status WriteModelFiles(const std::string& folder, const ArtifactSource& source, const Json& config,
                             const std::vector<ShardRecord>& shards) {
  Json map = Json::object();
  int64_t total = 0;
  for (const ShardRecord& shard : shards) {
    for (const TensorRecord& tensor : shard.tensors) {
      map[tensor.name] = shard.file;
      total += tensor.bytes;
    }
  }
  const Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}};
  SAGE_RETURN_IF_ERROR(WriteFileAtomic(folder + "/model.safetensors.index.json", DumpJson(index, 2) + "\n"));
  SAGE_RETURN_IF_ERROR(WriteFileAtomic(folder + "/config.json", DumpJson(config, 2) + "\n"));
  const Json& generation = source.checkpoint().generation_config();
  if (!generation.is_object() || generation.empty()) return absl::OkStatus();
  return WriteFileAtomic(folder + "/generation_config.json", DumpJson(generation, 2) + "\n");
}

absl::StatusOr<Json> HashSideFiles(const std::string& folder, const std::vector<ShardRecord>& shards) {
  Json out = Json::object();
  SAGE_ASSIGN_OR_RETURN(const std::vector<std::string> names, RegularFiles(folder));
  for (const std::string& name : names) {
    const bool shard = std::any_of(shards.begin(), shards.end(), [&](const ShardRecord& s) { return s.file == name; });
    if (shard || name == kManifestFile) continue;
    SAGE_ASSIGN_OR_RETURN(out[name], Sha256File(folder + "/" + name));
  }
  return out;
}

absl::Status RemoveAllBut(const std::string& folder, const std::vector<ShardRecord>& shards) {
  std::vector<fs::path> remove;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    const bool keep = std::any_of(shards.begin(), shards.end(), [&](const ShardRecord& s) { return s.file == name; });
    if (!keep) remove.push_back(it->path());
  }
  for (const fs::path& path : remove) fs::remove_all(path, error);
  return error ? FileError(error.value(), "cannot clear", folder) : absl::OkStatus();
}

absl::Status PublishFolder(const std::string& staged, const std::string& target) {
  struct stat info;
  if (lstat(target.c_str(), &info) == 0) {
    return MakeError(absl::StatusCode::kAlreadyExists, "OUTPUT_EXISTS",
                     absl::StrCat("output: ", target, " is there already"));
  }
  const std::string parent = fs::path(target).parent_path().string();
  if (!parent.empty()) SAGE_RETURN_IF_ERROR(MakeDirectories(parent));
  if (rename(staged.c_str(), target.c_str()) != 0) {
    if (errno != EXDEV) return FileError(errno, "cannot rename to", target);
    const std::string beside = target + ".incoming";
    std::error_code error;
    fs::remove_all(beside, error);
    fs::copy(staged, beside, fs::copy_options::recursive, error);
    if (error) return FileError(error.value(), "cannot copy to", beside);
    SAGE_ASSIGN_OR_RETURN(const std::vector<std::string> names, RegularFiles(beside));
    for (const std::string& name : names) SAGE_RETURN_IF_ERROR(FsyncPath(beside + "/" + name));
    if (rename(beside.c_str(), target.c_str()) != 0) {
      return FileError(errno, "cannot rename to", target);
    }
    fs::remove_all(staged, error);
  }
  return FsyncPath(parent.empty() ? "." : parent);
}

absl::StatusOr<std::unique_ptr<FolderLock>> FolderLock::Take(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return FileError(errno, "cannot open", path);
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    close(fd);
    return MakeError(absl::StatusCode::kAborted, "OPERATION_IN_PROGRESS",
                     absl::StrCat(path, ": the same work is running already"));
  }
  return std::unique_ptr<FolderLock>(new FolderLock(fd, path));
}

FolderLock::~FolderLock() { close(fd_); }

absl::StatusOr<int64_t> VerifyArtifactFolder(const std::string& path, const CancelToken& cancel) {
  SAGE_ASSIGN_OR_RETURN(const Json manifest, ReadManifest(path));
  int64_t verified = 0;
  SAGE_RETURN_IF_ERROR(VerifyShards(path, manifest, cancel, verified));
  const auto side = manifest.find("side_files");
  if (side != manifest.end() && side->is_object()) {
    for (const auto& [name, sha256] : side->items()) {
      SAGE_RETURN_IF_ERROR(cancel.Check());
      SAGE_ASSIGN_OR_RETURN(const std::string file, JoinInside(path, name));
      if (!FileExists(file)) return DataLoss(absl::StrCat(name, ": named by sage_quant.json, is not there"));
      SAGE_ASSIGN_OR_RETURN(const std::string got, Sha256File(file));
      if (!sha256.is_string() || got != sha256.get<std::string>()) {
        return DataLoss(absl::StrCat(name, ": sha256 differs from sage_quant.json, got ", got));
      }
    }
  }
  return verified;
}

}  // namespace sage
