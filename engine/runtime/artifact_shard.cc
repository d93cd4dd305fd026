// Writes and hashes the safetensors files of artifacts.
#include "engine/runtime/artifact_shard.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/file.h"
#include "engine/base/file_error.h"
#include "engine/base/status.h"
#include "engine/tensor/gguf_file.h"
#include "engine/tensor/safetensors_file.h"

namespace sage {
namespace {

// A file under construction: hashes what it writes and removes itself unless renamed.
class ShardFile {
 public:
  explicit ShardFile(std::string path) : path_(std::move(path)), tmp_(path_ + ".tmp") {}
  ~ShardFile() {
    if (fd_ >= 0) close(fd_);
    if (fd_ >= 0) unlink(tmp_.c_str());
  }
  absl::Status Open() {
    fd_ = open(tmp_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    return fd_ < 0 ? FileError(errno, "cannot create", tmp_) : absl::OkStatus();
  }
  absl::Status Append(const void* bytes, size_t size) {
    hash_.Update(bytes, size);
    bytes_ += static_cast<int64_t>(size);
    const char* p = static_cast<const char*>(bytes);
    while (size > 0) {
      const ssize_t n = write(fd_, p, std::min<size_t>(size, size_t{1} << 30));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return FileError(errno, "cannot write", tmp_);
      p += n;
      size -= static_cast<size_t>(n);
    }
    return absl::OkStatus();
  }
  absl::Status Finish() {
    if (fsync(fd_) != 0) return FileError(errno, "cannot fsync", tmp_);
    if (rename(tmp_.c_str(), path_.c_str()) != 0) return FileError(errno, "cannot rename", path_);
    close(fd_);
    fd_ = -1;
    return absl::OkStatus();
  }
  int64_t bytes() const { return bytes_; }
  std::string HexDigest() { return hash_.HexDigest(); }

 private:
  std::string path_, tmp_;
  int fd_ = -1;
  int64_t bytes_ = 0;
  Sha256 hash_;
};

std::string TensorSha256(const TensorView& view) {
  return Sha256Hex(std::string_view(static_cast<const char*>(view.data), view.bytes));
}

absl::StatusOr<std::string> BuildHeader(const std::vector<NamedTensor>& tensors) {
  OrderedJson header = OrderedJson::object();
  header["__metadata__"] = {{"format", "pt"}};
  size_t offset = 0;
  for (const NamedTensor& tensor : tensors) {
    if (header.contains(tensor.name)) {
      return MakeError(absl::StatusCode::kInvalidArgument, "DUPLICATE_TENSOR",
                       absl::StrCat(tensor.name, ": written twice"));
    }
    OrderedJson entry = OrderedJson::object();
    entry["dtype"] = std::string(DTypeName(tensor.view.dtype));
    entry["shape"] = tensor.view.shape;
    entry["data_offsets"] = {offset, offset + tensor.view.bytes};
    header[tensor.name] = std::move(entry);
    offset += tensor.view.bytes;
  }
  std::string text = header.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

absl::StatusOr<std::map<std::string, std::string>> HashGgufTensors(const std::string& path, const CancelToken& cancel) {
  SAGE_ASSIGN_OR_RETURN(const std::shared_ptr<GgufFile> file, GgufFile::Open(path));
  std::map<std::string, std::string> out;
  for (const auto& [name, tensor] : file->tensors()) {
    SAGE_RETURN_IF_ERROR(cancel.Check());
    out[name] = Sha256Hex(std::string_view(reinterpret_cast<const char*>(tensor.data), tensor.bytes));
  }
  return out;
}

}  // namespace

std::string ShardFileName(int64_t shard, int64_t count) {
  return absl::StrFormat("model-%05d-of-%05d.safetensors", shard + 1, count);
}

absl::StatusOr<ShardRecord> WriteShard(const std::string& folder, const std::string& file,
                                       std::vector<NamedTensor> tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const NamedTensor& a, const NamedTensor& b) {
    const size_t x = DTypeSize(a.view.dtype), y = DTypeSize(b.view.dtype);
    return x != y ? x > y : a.name < b.name;
  });
  SAGE_ASSIGN_OR_RETURN(const std::string header, BuildHeader(tensors));
  ShardFile out(folder + "/" + file);
  SAGE_RETURN_IF_ERROR(out.Open());
  uint8_t length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(static_cast<uint64_t>(header.size()) >> (8 * i));
  SAGE_RETURN_IF_ERROR(out.Append(length, sizeof(length)));
  SAGE_RETURN_IF_ERROR(out.Append(header.data(), header.size()));
  ShardRecord record;
  record.file = file;
  for (const NamedTensor& tensor : tensors) {
    SAGE_RETURN_IF_ERROR(out.Append(tensor.view.data, tensor.view.bytes));
    record.tensors.push_back({tensor.name, static_cast<int64_t>(tensor.view.bytes), TensorSha256(tensor.view)});
  }
  SAGE_RETURN_IF_ERROR(out.Finish());
  SAGE_RETURN_IF_ERROR(FsyncPath(folder));
  std::sort(record.tensors.begin(), record.tensors.end(),
            [](const TensorRecord& a, const TensorRecord& b) { return a.name < b.name; });
  record.bytes = out.bytes();
  record.sha256 = out.HexDigest();
  return record;
}

Json ShardToJson(const ShardRecord& shard) {
  Json tensors = Json::object();
  for (const TensorRecord& tensor : shard.tensors)
    tensors[tensor.name] = {{"bytes", tensor.bytes}, {"sha256", tensor.sha256}};
  return {{"file", shard.file}, {"bytes", shard.bytes}, {"sha256", shard.sha256}, {"tensors", std::move(tensors)}};
}

absl::StatusOr<ShardRecord> ShardFromJson(const Json& json) {
  ShardRecord shard;
  SAGE_ASSIGN_OR_RETURN(shard.file, JsonString(json, "file", ""));
  SAGE_ASSIGN_OR_RETURN(shard.bytes, JsonInt(json, "bytes", 0));
  SAGE_ASSIGN_OR_RETURN(shard.sha256, JsonString(json, "sha256", ""));
  if (!json.is_object() || !json.contains("tensors") || !json["tensors"].is_object() || shard.file.empty()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_SHARD_RECORD",
                     "shard record: needs 'file' and 'tensors'");
  }
  for (const auto& [name, entry] : json["tensors"].items()) {
    TensorRecord tensor;
    tensor.name = name;
    SAGE_ASSIGN_OR_RETURN(tensor.bytes, JsonInt(entry, "bytes", 0));
    SAGE_ASSIGN_OR_RETURN(tensor.sha256, JsonString(entry, "sha256", ""));
    shard.tensors.push_back(std::move(tensor));
  }
  return shard;
}

bool ShardIsIntact(const std::string& folder, const ShardRecord& shard) {
  const absl::StatusOr<std::string> path = JoinInside(folder, shard.file);
  if (!path.ok() || !FileExists(*path)) return false;
  const absl::StatusOr<std::string> sha256 = Sha256File(*path);
  return sha256.ok() && *sha256 == shard.sha256;
}

absl::StatusOr<std::map<std::string, std::string>> HashTensors(const std::string& path, const CancelToken& cancel) {
  if (absl::EndsWith(path, ".gguf")) return HashGgufTensors(path, cancel);
  SAGE_ASSIGN_OR_RETURN(const std::shared_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
  std::map<std::string, std::string> out;
  for (const auto& [name, view] : file->tensors()) {
    SAGE_RETURN_IF_ERROR(cancel.Check());
    out[name] = TensorSha256(view);
  }
  return out;
}

}  // namespace sage
