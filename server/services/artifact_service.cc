// ArtifactService: the folders below DATA_DIR/artifacts.
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/tokenizer/unicode.h"
#include "sage/quant/v1/artifact.grpc.pb.h"
#include "server/convert.h"
#include "server/convert_status.h"
#include "server/daemon.h"
#include "server/services/call.h"
#include "server/services/services.h"

namespace sage::server {
namespace {

namespace fs = std::filesystem;
constexpr size_t kChunk = 1 << 20;

std::vector<std::string> FilesOf(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.is_regular_file(error) && !entry.is_symlink(error)) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Anybody may have written what lies in the folder, and one text that is not UTF-8 makes a whole answer unreadable.
void FillArtifact(const std::string& name, const std::string& path, bool full, pb::Artifact* out) {
  out->set_name(name);
  out->set_path(LossyUtf8(path));
  std::error_code error;
  const auto time = fs::last_write_time(path, error);
  if (!error) {
    const auto age = fs::file_time_type::clock::now() - time;
    out->mutable_create_time()->set_seconds(NowMs() / 1000 -
                                            std::chrono::duration_cast<std::chrono::seconds>(age).count());
  }
  if (absl::StatusOr<ModelSummary> summary = InspectModel(path); summary.ok()) {
    out->set_format(summary->format);
    out->set_architecture(LossyUtf8(summary->architecture));
    out->set_quantization(LossyUtf8(summary->quantization));
    out->set_file_bytes(summary->file_bytes);
    out->set_parameters(summary->parameters);
    out->set_max_position(summary->max_position);
    out->set_has_tokenizer(summary->has_tokenizer);
  }
  if (!full) return;
  for (const std::string& file : FilesOf(path)) {
    auto* row = out->add_files();
    row->set_name(LossyUtf8(file));
    row->set_bytes(static_cast<int64_t>(fs::file_size(fs::path(path) / file, error)));
  }
  if (absl::StatusOr<std::string> manifest = ReadFile(path + "/sage_quant.json", 16 << 20); manifest.ok()) {
    out->set_manifest_json(LossyUtf8(*manifest));
  }
}

// Reads and writes on a worker: one chunk is read, written, and the next is read when that write is done.
class ExportReactor final : public grpc::ServerWriteReactor<pb::ExportArtifactResponse> {
 public:
  explicit ExportReactor(Daemon& daemon) : daemon_(daemon), call_(daemon, "grpc", "ExportArtifact") {}

  void Start(grpc::CallbackServerContext* context, const pb::ExportArtifactRequest& request) {
    call_.SetTargets(request);
    absl::Status status = call_.Open(*context, true);
    if (!status.ok()) return End(status);
    absl::StatusOr<std::string> path = daemon_.paths().ResolveArtifact(request.name());
    if (!path.ok()) return End(path.status());
    folder_ = *path;
    const std::vector<std::string> all = FilesOf(folder_);
    files_.assign(request.files().begin(), request.files().end());
    if (files_.empty()) files_ = all;
    for (const std::string& file : files_) {
      if (std::find(all.begin(), all.end(), file) == all.end()) {
        return End(MakeError(absl::StatusCode::kNotFound, "FILE_NOT_FOUND",
                             absl::StrCat("artifact: it has no file \"", file, "\""), {{"field", "files"}}));
      }
    }
    Queue();
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return End(absl::CancelledError("the client went away"));
    Queue();
  }
  void OnCancel() override { call_.cancel.Cancel(); }
  void OnDone() override { delete this; }

 private:
  void Queue() {
    if (!daemon_.Slow([this] { Step(); })) End(WorkersBusy());
  }
  void Step() {
    if (call_.cancel.cancelled()) return End(absl::CancelledError("cancelled by the client"));
    if (index_ == files_.size()) return End(absl::OkStatus());
    const std::string& name = files_[index_];
    if (!stream_.is_open()) {
      stream_.open(folder_ + "/" + name, std::ios::binary);
      std::error_code error;
      size_ = static_cast<int64_t>(fs::file_size(folder_ + "/" + name, error));
      hash_ = std::make_unique<Sha256>();
      offset_ = 0;
    }
    std::string data(std::min<size_t>(kChunk, static_cast<size_t>(std::max<int64_t>(size_ - offset_, 0))), '\0');
    stream_.read(data.data(), static_cast<std::streamsize>(data.size()));
    if (static_cast<size_t>(stream_.gcount()) != data.size()) {
      return End(MakeError(absl::StatusCode::kDataLoss, "READ_FAILED", absl::StrCat(name, ": cannot be read")));
    }
    hash_->Update(data.data(), data.size());
    message_.Clear();
    message_.set_file(LossyUtf8(name));
    message_.set_offset(offset_);
    message_.set_size_bytes(size_);
    offset_ += static_cast<int64_t>(data.size());
    message_.set_data(std::move(data));
    if (offset_ >= size_) {
      message_.set_last(true);
      message_.set_sha256(hash_->HexDigest());
      stream_.close();
      stream_.clear();
      ++index_;
    }
    StartWrite(&message_);
  }
  void End(const absl::Status& status) {
    call_.SetStatus(status);
    Finish(ToGrpcStatus(status));
  }

  Daemon& daemon_;
  Call call_;
  std::string folder_;
  std::vector<std::string> files_;
  size_t index_ = 0;
  std::ifstream stream_;
  std::unique_ptr<Sha256> hash_;
  int64_t offset_ = 0, size_ = 0;
  pb::ExportArtifactResponse message_;
};

class ArtifactService final : public pb::ArtifactService::CallbackService {
 public:
  explicit ArtifactService(Daemon& daemon) : daemon_(daemon) {}

  grpc::ServerUnaryReactor* ListArtifacts(grpc::CallbackServerContext* context, const pb::ListArtifactsRequest* request,
                                          pb::ListArtifactsResponse* response) override {
    return RunUnary(daemon_, context, "ListArtifacts", Lane::kQuick, Admission::kNotNeeded,
                    [=, this](Call&) { return List(*request, response); });
  }
  grpc::ServerUnaryReactor* GetArtifact(grpc::CallbackServerContext* context, const pb::GetArtifactRequest* request,
                                        pb::Artifact* response) override {
    return RunUnary(daemon_, context, "GetArtifact", Lane::kQuick, Admission::kNotNeeded,
                    [=, this](Call&) -> absl::Status {
                      SAGE_ASSIGN_OR_RETURN(std::string path, daemon_.paths().ResolveArtifact(request->name()));
                      FillArtifact(request->name(), path, true, response);
                      return absl::OkStatus();
                    });
  }
  grpc::ServerUnaryReactor* DeleteArtifact(grpc::CallbackServerContext* context,
                                           const pb::DeleteArtifactRequest* request,
                                           pb::DeleteArtifactResponse*) override {
    return RunUnary(daemon_, context, "DeleteArtifact", *request, Lane::kSlow, Admission::kNeeded,
                    [=, this](Call&) { return Delete(*request); });
  }
  grpc::ServerWriteReactor<pb::ExportArtifactResponse>* ExportArtifact(
      grpc::CallbackServerContext* context, const pb::ExportArtifactRequest* request) override {
    auto* reactor = new ExportReactor(daemon_);
    reactor->Start(context, *request);
    return reactor;
  }
  grpc::ServerUnaryReactor* VerifyArtifact(grpc::CallbackServerContext* context,
                                           const pb::VerifyArtifactRequest* request,
                                           pb::VerifyArtifactResponse* response) override {
    return RunUnary(daemon_, context, "VerifyArtifact", Lane::kSlow, Admission::kNeeded,
                    [=, this](Call& call) -> absl::Status {
                      SAGE_ASSIGN_OR_RETURN(std::string path, daemon_.paths().ResolveArtifact(request->name()));
                      SAGE_ASSIGN_OR_RETURN(int64_t tensors, daemon_.runtime().VerifyArtifact(path, call.cancel));
                      response->set_tensors(tensors);
                      return absl::OkStatus();
                    });
  }

 private:
  absl::Status List(const pb::ListArtifactsRequest& request, pb::ListArtifactsResponse* response) {
    if (request.page_size() < 0) return BadField("page_size", "OUT_OF_RANGE", "must not be negative");
    const int size = request.page_size() == 0 ? 100 : std::min(request.page_size(), 1000);
    std::vector<std::string> names;
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(daemon_.paths().artifacts_dir(), error)) {
      const std::string name = entry.path().filename().string();
      if (entry.is_directory(error) && IsPlainName(name) && name > request.page_token()) names.push_back(name);
    }
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) {
      if (response->artifacts_size() == size) {
        response->set_next_page_token(response->artifacts(size - 1).name());
        break;
      }
      absl::StatusOr<std::string> path = daemon_.paths().ResolveArtifact(name);
      if (path.ok()) FillArtifact(name, *path, false, response->add_artifacts());
    }
    return absl::OkStatus();
  }

  absl::Status Delete(const pb::DeleteArtifactRequest& request) {
    absl::StatusOr<std::string> path = daemon_.paths().ResolveArtifact(request.name());
    if (!path.ok()) {
      if (request.request_id().empty() || !IsPlainName(request.name())) return path.status();
      SAGE_ASSIGN_OR_RETURN(auto answer, daemon_.store().FindRequest(request.request_id(), "delete", request.name()));
      return answer ? absl::OkStatus() : path.status();  // a repeat of the call that deleted it
    }
    if (daemon_.engines().UsesPath(*path) || daemon_.operations().UsesTarget(*path)) {
      return MakeError(absl::StatusCode::kFailedPrecondition, "ARTIFACT_IN_USE",
                       absl::StrCat("artifact: \"", request.name(), "\" is used by an engine or operation"),
                       {{"subject", request.name()}});
    }
    std::error_code error;
    // Renamed first, so that a half-deleted folder never looks like an artifact.
    const std::string grave = daemon_.paths().data_dir() + "/work/" + NewId("deleted");
    fs::rename(*path, grave, error);
    if (error) {
      return MakeError(absl::StatusCode::kInternal, "DELETE_FAILED",
                       absl::StrCat(request.name(), ": ", error.message()));
    }
    fs::remove_all(grave, error);
    if (!request.request_id().empty()) {
      return daemon_.store().RecordRequest(request.request_id(), "delete", request.name(), "deleted");
    }
    return absl::OkStatus();
  }

  Daemon& daemon_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeArtifactService(Daemon& daemon) { return std::make_unique<ArtifactService>(daemon); }

}  // namespace sage::server
