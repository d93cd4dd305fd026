// ArtifactService.ExportArtifact into files.
#include "client/cli/export_folder.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

#include "client/cli/progress.h"
#include "sage/quant/v1/artifact.grpc.pb.h"

namespace sage::cli {
namespace {

namespace v1 = ::sage::quant::v1;
namespace fs = std::filesystem;

Failure FileFailure(const std::string& what, const std::string& path) {
  return {.code = "INTERNAL", .reason = "FILE_ERROR", .message = what + " " + path + ": " + std::strerror(errno)};
}

Failure Damaged(const std::string& file, const std::string& rule) {
  return {.code = "DATA_LOSS", .reason = "EXPORT_DAMAGED", .message = file + ": " + rule, .metadata = {{"file", file}}};
}

// A file that is being received.
class IncomingFile {
 public:
  IncomingFile() : hash_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {}
  ~IncomingFile() {
    if (fd_ >= 0) close(fd_);
  }
  IncomingFile(const IncomingFile&) = delete;
  IncomingFile& operator=(const IncomingFile&) = delete;

  const std::string& name() const { return name_; }
  bool open() const { return fd_ >= 0; }

  std::optional<Failure> Begin(const std::string& folder, const std::string& name) {
    // Artifacts have no folders within; a name that leaves ours must not be followed.
    if (name.empty() || name.find('/') != name.npos || name == "." || name == "..") {
      return Damaged(name, "the name of a file must hold no '/'");
    }
    name_ = name;
    path_ = folder + "/" + name;
    bytes_ = 0;
    EVP_DigestInit_ex(hash_.get(), EVP_sha256(), nullptr);
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd_ < 0) return FileFailure("cannot create", path_);
    return std::nullopt;
  }

  std::optional<Failure> Write(const std::string& data) {
    EVP_DigestUpdate(hash_.get(), data.data(), data.size());
    for (size_t done = 0; done < data.size();) {
      const ssize_t n = write(fd_, data.data() + done, data.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return FileFailure("cannot write", path_);
      done += static_cast<size_t>(n);
    }
    bytes_ += static_cast<int64_t>(data.size());
    return std::nullopt;
  }

  std::optional<Failure> End(const v1::ExportArtifactResponse& last) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    EVP_DigestFinal_ex(hash_.get(), digest, &size);
    std::string hex;
    for (unsigned i = 0; i < size; ++i) {
      char two[3];
      std::snprintf(two, sizeof two, "%02x", digest[i]);
      hex += two;
    }
    if (fsync(fd_) != 0) return FileFailure("cannot fsync", path_);
    close(fd_);
    fd_ = -1;
    if (bytes_ != last.size_bytes()) return Damaged(name_, "its size differs from what the daemon told");
    if (hex != last.sha256()) return Damaged(name_, "its sha256 differs from what the daemon told");
    return std::nullopt;
  }

  int64_t bytes() const { return bytes_; }

 private:
  std::string name_, path_;
  int fd_ = -1;
  int64_t bytes_ = 0;
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> hash_;
};

std::optional<Failure> Receive(Context& context, const std::string& artifact, const std::string& folder) {
  auto stub = v1::ArtifactService::NewStub(context.session->channel());
  Session::Call call(*context.session);
  v1::ExportArtifactRequest request;
  request.set_name(artifact);
  auto reader = stub->ExportArtifact(call.get(), request);
  ProgressPrinter printer("export", context.options.json);
  IncomingFile file;
  v1::ExportArtifactResponse chunk;
  std::optional<Failure> failure;
  while (!failure && reader->Read(&chunk)) {
    if (!file.open()) failure = file.Begin(folder, chunk.file());
    if (!failure && (chunk.file() != file.name() || chunk.offset() != file.bytes())) {
      failure = Damaged(chunk.file(), "a chunk is missing or out of order");
    }
    if (!failure) failure = file.Write(chunk.data());
    if (!failure && chunk.last()) failure = file.End(chunk);
    printer.Update(file.name(), file.bytes(), chunk.size_bytes(), "bytes", -1);
  }
  if (failure) call->TryCancel();
  const grpc::Status status = reader->Finish();
  printer.Finish();
  if (!failure && !status.ok()) failure = context.session->ToFailure(status);
  if (!failure && file.open()) failure = Damaged(file.name(), "the stream ended before the file did");
  return failure;
}

}  // namespace

std::string WithoutTrailingSlash(std::string output) {
  while (output.size() > 1 && output.back() == '/') output.pop_back();
  return output;
}

bool NamesFolder(const std::string& output) {
  const fs::path path = WithoutTrailingSlash(output);
  return path.has_parent_path() && std::none_of(path.begin(), path.end(), [](const fs::path& p) { return p == ".."; });
}

std::optional<Failure> CheckNewFolder(const std::string& folder) {
  std::error_code error;
  if (fs::symlink_status(folder, error).type() == fs::file_type::not_found) return std::nullopt;
  return Failure{.code = "ALREADY_EXISTS",
                 .reason = "OUTPUT_EXISTS",
                 .message = "output: " + folder + " exists; delete it or choose another folder"};
}

std::optional<Failure> ExportArtifactTo(Context& context, const std::string& artifact, const std::string& folder) {
  std::error_code error;
  const fs::path parent = fs::path(folder).parent_path();
  fs::create_directories(parent, error);
  const std::string partial = folder + ".partial." + std::to_string(getpid());
  if (!fs::create_directory(partial, error)) {
    errno = error.value();
    return FileFailure("cannot create folder", partial);
  }
  std::optional<Failure> failure = Receive(context, artifact, partial);
  if (!failure) failure = CheckNewFolder(folder);
  if (!failure && std::rename(partial.c_str(), folder.c_str()) != 0) failure = FileFailure("cannot rename to", folder);
  if (failure) fs::remove_all(partial, error);
  return failure;
}

std::optional<Failure> DeleteArtifact(Context& context, const std::string& artifact) {
  auto stub = v1::ArtifactService::NewStub(context.session->channel());
  Session::Call call(*context.session);
  v1::DeleteArtifactRequest request;
  request.set_name(artifact);
  v1::DeleteArtifactResponse answer;
  const grpc::Status status = stub->DeleteArtifact(call.get(), request, &answer);
  if (!status.ok()) return context.session->ToFailure(status);
  return std::nullopt;
}

}  // namespace sage::cli
