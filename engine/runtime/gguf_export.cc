// Data first, one tensor in memory at a time; then the beginning, whose size was known from names and shapes.
#include "engine/runtime/gguf_export.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/file.h"
#include "engine/base/file_error.h"
#include "engine/base/status.h"
#include "engine/quant/ggml_blocks.h"
#include "engine/runtime/gguf_keys.h"
#include "engine/runtime/gguf_tensors.h"
#include "engine/runtime/gguf_vocabulary.h"
#include "engine/tensor/gguf_writer.h"

namespace sage {
namespace {

class OutputFile {
 public:
  explicit OutputFile(std::string path) : path_(std::move(path)) {}
  ~OutputFile() {
    if (fd_ >= 0) close(fd_);
  }
  absl::Status Open() {
    fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    return fd_ < 0 ? Problem("cannot create") : absl::OkStatus();
  }
  absl::Status WriteAt(uint64_t offset, const void* bytes, size_t size) {
    const char* p = static_cast<const char*>(bytes);
    while (size > 0) {
      const ssize_t n = pwrite(fd_, p, std::min<size_t>(size, size_t{1} << 30), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return Problem("cannot write");
      p += n;
      offset += static_cast<uint64_t>(n);
      size -= static_cast<size_t>(n);
    }
    return absl::OkStatus();
  }
  absl::Status Sync() { return fsync(fd_) == 0 ? absl::OkStatus() : Problem("cannot fsync"); }

 private:
  absl::Status Problem(const char* what) const { return FileError(errno, what, path_); }
  std::string path_;
  int fd_ = -1;
};

// What most linear weights are, for people who list the file.
uint32_t FileTypeOf(const GgufScheme& scheme, const std::map<std::string, int64_t>& bytes_of_type) {
  if (!scheme.exact) return scheme.file_type;
  static const std::map<std::string, uint32_t> kIds = {
      {"f32", 0},   {"f16", 1},   {"bf16", 32}, {"q4_0", 2},  {"q4_1", 3},  {"q8_0", 7},    {"q5_0", 8},   {"q5_1", 9},
      {"q2_k", 10}, {"q3_k", 12}, {"q4_k", 15}, {"q5_k", 17}, {"q6_k", 18}, {"iq4_nl", 25}, {"iq4_xs", 30}};
  uint32_t best = 0;
  int64_t most = -1;
  for (const auto& [type, bytes] : bytes_of_type) {
    const auto it = kIds.find(type);
    if (it == kIds.end() || bytes <= most) continue;
    most = bytes;
    best = it->second;
  }
  return best;
}

class Export {
 public:
  Export(const ArtifactSource& source, const GgufScheme& scheme, std::string name, ThreadPool& threads)
      : source_(source), scheme_(scheme), name_(std::move(name)), threads_(threads) {}
  absl::Status Run(const std::string& path, const CancelToken& cancel, const ProgressFn& progress);
  GgufExport Take() { return std::move(out_); }

 private:
  absl::StatusOr<std::string> Beginning(uint32_t file_type) const;
  absl::Status Append(OutputFile& file, const GgufTensors& tensors, size_t index);
  void AddNotes();

  const ArtifactSource& source_;
  const GgufScheme& scheme_;
  const std::string name_;
  ThreadPool& threads_;
  GgufKeys vocabulary_;
  std::vector<GgufTensorEntry> entries_;
  std::map<std::string, int64_t> bytes_of_type_;                                   // of linear layers
  std::map<std::pair<std::string, std::string>, std::vector<std::string>> noted_;  // (type, why) -> tensors
  uint64_t at_ = 0;
  GgufExport out_;
};

absl::StatusOr<std::string> Export::Beginning(uint32_t file_type) const {
  GgufKeys keys;
  SAGE_RETURN_IF_ERROR(AddModelKeys(source_.config(), name_, file_type, keys));
  keys.Append(vocabulary_);
  return GgufBeginning(keys, entries_);
}

absl::Status Export::Append(OutputFile& file, const GgufTensors& tensors, size_t index) {
  const GgufTensors::Item& item = tensors.items()[index];
  SAGE_ASSIGN_OR_RETURN(GgufData data, tensors.Encode(item));
  GgufTensorEntry& entry = entries_[index];
  entry.type = data.type;
  entry.bytes = data.bytes.size();
  const std::string type(FindGgmlType(data.type)->name);
  if (item.linear && item.shape.size() == 2) bytes_of_type_[type] += static_cast<int64_t>(data.bytes.size());
  if (!data.note.empty()) noted_[{type, data.note}].push_back(item.name);
  out_.types[item.name] = type;
  out_.file.tensors.push_back({item.name, static_cast<int64_t>(data.bytes.size()),
                               Sha256Hex({reinterpret_cast<const char*>(data.bytes.data()), data.bytes.size()})});
  const uint64_t size = data.bytes.size();
  data.bytes.resize(size + GgufPadding(size), 0);
  SAGE_RETURN_IF_ERROR(file.WriteAt(at_, data.bytes.data(), data.bytes.size()));
  at_ += data.bytes.size();
  return absl::OkStatus();
}

void Export::AddNotes() {
  for (const auto& [what, names] : noted_) {
    out_.notes.push_back(
        absl::StrCat(what.first, " for ", names.size(), " tensors (", what.second, "): ", absl::StrJoin(names, ", ")));
  }
}

absl::Status Export::Run(const std::string& path, const CancelToken& cancel, const ProgressFn& progress) {
  SAGE_ASSIGN_OR_RETURN(const std::unique_ptr<GgufTensors> tensors, GgufTensors::Create(source_, scheme_, threads_));
  SAGE_RETURN_IF_ERROR(AddTokenizerKeys(source_, vocabulary_, out_.notes));
  for (const GgufTensors::Item& item : tensors->items()) entries_.push_back({item.name, item.shape, {}, 0});
  SAGE_ASSIGN_OR_RETURN(const std::string placeholder, Beginning(0));
  OutputFile file(path);
  SAGE_RETURN_IF_ERROR(file.Open());
  at_ = placeholder.size();
  const int64_t total = static_cast<int64_t>(entries_.size());
  for (size_t i = 0; i < entries_.size(); ++i) {
    SAGE_RETURN_IF_ERROR(cancel.Check());
    if (progress) progress({"write", static_cast<int64_t>(i), 2 * total, "tensors"});
    const absl::Status status = Append(file, *tensors, i);
    if (!status.ok()) return Annotate(status, entries_[i].name);
  }
  SAGE_ASSIGN_OR_RETURN(const std::string beginning, Beginning(FileTypeOf(scheme_, bytes_of_type_)));
  SAGE_RETURN_IF_ERROR(file.WriteAt(0, beginning.data(), beginning.size()));
  AddNotes();
  return file.Sync();
}

}  // namespace

absl::StatusOr<GgufExport> WriteGguf(const ArtifactSource& source, const GgufScheme& scheme, const std::string& folder,
                                     const std::string& file, ThreadPool& threads, const CancelToken& cancel,
                                     const ProgressFn& progress) {
  const std::string path = folder + "/" + file;
  Export work(source, scheme, file.substr(0, file.rfind('.')), threads);
  SAGE_RETURN_IF_ERROR(work.Run(path, cancel, progress));
  SAGE_RETURN_IF_ERROR(FsyncPath(folder));
  GgufExport out = work.Take();
  out.file.file = file;
  SAGE_ASSIGN_OR_RETURN(out.file.sha256, Sha256File(path));
  SAGE_ASSIGN_OR_RETURN(const std::shared_ptr<MappedFile> map, MappedFile::Open(path));
  out.file.bytes = static_cast<int64_t>(map->size());
  std::sort(out.file.tensors.begin(), out.file.tensors.end(),
            [](const TensorRecord& a, const TensorRecord& b) { return a.name < b.name; });
  return out;
}

}  // namespace sage
