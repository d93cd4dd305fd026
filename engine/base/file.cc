// POSIX files: maps, bounded reads, atomic writes, and SHA-256 through libcrypto.
#include "engine/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/file_error.h"
#include "engine/base/map_guard.h"
#include "engine/base/read_roots.h"
#include "engine/base/status.h"

namespace sage {
namespace {

absl::Status ErrnoStatus(const std::string& what, const std::string& path) { return FileError(errno, what, path); }

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }
  bool ok() const { return fd_ >= 0; }

 private:
  int fd_;
};

absl::StatusOr<size_t> RegularFileSize(const FileDescriptor& fd, const std::string& path) {
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus("cannot stat", path);
  if (!S_ISREG(info.st_mode)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "NOT_A_REGULAR_FILE",
                     absl::StrCat(path, ": must be a regular file"));
  }
  return static_cast<size_t>(info.st_size);
}

}  // namespace

absl::Status FileError(int error, const std::string& what, const std::string& path) {
  const bool full = error == ENOSPC || error == EDQUOT;
  const bool missing = error == ENOENT || error == ENOTDIR;
  const auto code = missing                             ? absl::StatusCode::kNotFound
                    : error == EACCES || error == EPERM ? absl::StatusCode::kPermissionDenied
                    : full                              ? absl::StatusCode::kResourceExhausted
                                                        : absl::StatusCode::kInternal;
  return MakeError(code,
                   missing ? "FILE_NOT_FOUND"
                   : full  ? "NO_SPACE"
                           : "FILE_ERROR",
                   absl::StrCat(what, " ", path, ": ", strerror(error)));
}

absl::StatusOr<std::shared_ptr<MappedFile>> MappedFile::Open(const std::string& path) {
  FileDescriptor fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.ok()) return ErrnoStatus("cannot open", path);
  SAGE_RETURN_IF_ERROR(CheckConfined(path, fd.get()));
  SAGE_ASSIGN_OR_RETURN(const size_t size, RegularFileSize(fd, path));
  std::shared_ptr<MappedFile> file(new MappedFile());
  file->path_ = path;
  file->size_ = size;
  if (size > 0) {
    void* map = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (map == MAP_FAILED) return ErrnoStatus("cannot map", path);
    file->data_ = static_cast<const uint8_t*>(map);
    GuardMap(map, size, path);
  }
  return file;
}

MappedFile::~MappedFile() {
  if (data_ == nullptr) return;
  UnguardMap(data_);
  munmap(const_cast<uint8_t*>(data_), size_);
}

void MappedFile::Release(const void* begin, size_t bytes) const { ReleaseMappedPages(begin, bytes); }

void ReleaseMappedPages(const void* begin, size_t bytes) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes) {
  FileDescriptor fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.ok()) return ErrnoStatus("cannot open", path);
  SAGE_RETURN_IF_ERROR(CheckConfined(path, fd.get()));
  SAGE_ASSIGN_OR_RETURN(const size_t size, RegularFileSize(fd, path));
  if (size > max_bytes) {
    return MakeError(absl::StatusCode::kInvalidArgument, "FILE_TOO_LARGE",
                     absl::StrCat(path, ": must be at most ", max_bytes, " bytes, got ", size));
  }
  std::string out(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t n = read(fd.get(), out.data() + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("cannot read", path);
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  out.resize(done);
  return out;
}

absl::Status FsyncPath(const std::string& path) {
  FileDescriptor fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.ok()) return ErrnoStatus("cannot open", path);
  if (fsync(fd.get()) != 0) return ErrnoStatus("cannot fsync", path);
  return absl::OkStatus();
}

absl::Status WriteFileAtomic(const std::string& path, std::string_view content) {
  static std::atomic<uint64_t> serial{0};
  const std::string tmp = absl::StrCat(path, ".tmp.", getpid(), ".", serial.fetch_add(1));
  {
    FileDescriptor fd(open(tmp.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (!fd.ok()) return ErrnoStatus("cannot create", tmp);
    size_t done = 0;
    while (done < content.size()) {
      const ssize_t n = write(fd.get(), content.data() + done, content.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        const absl::Status status = ErrnoStatus("cannot write", tmp);
        unlink(tmp.c_str());
        return status;
      }
      done += static_cast<size_t>(n);
    }
    if (fsync(fd.get()) != 0) {
      const absl::Status status = ErrnoStatus("cannot fsync", tmp);
      unlink(tmp.c_str());
      return status;
    }
  }
  if (rename(tmp.c_str(), path.c_str()) != 0) {
    const absl::Status status = ErrnoStatus("cannot rename", path);
    unlink(tmp.c_str());
    return status;
  }
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return FsyncPath(folder.empty() ? "." : folder);
}

bool FileExists(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

bool IsDirectory(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

absl::Status MakeDirectories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error && !IsDirectory(path)) {
    return MakeError(absl::StatusCode::kInternal, "FILE_ERROR",
                     absl::StrCat("cannot create folder ", path, ": ", error.message()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> JoinInside(const std::string& folder, std::string_view name) {
  const auto refuse = [&](const char* rule) {
    return MakeError(absl::StatusCode::kInvalidArgument, "PATH_OUTSIDE_FOLDER",
                     absl::StrCat("file name ", rule, ", got '", std::string(name.substr(0, 120)), "'"));
  };
  if (name.empty()) return refuse("must not be empty");
  if (name.size() > 1024) return refuse("must be at most 1024 bytes");
  if (name.front() == '/') return refuse("must be relative");
  if (name.find('\0') != name.npos || name.find('\\') != name.npos) return refuse("must not hold NUL or backslash");
  for (absl::string_view part : absl::StrSplit(absl::string_view(name.data(), name.size()), '/')) {
    if (part == "..") return refuse("must not leave its folder");
  }
  return absl::StrCat(folder, "/", std::string(name));
}

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) { EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr); }
Sha256::~Sha256() = default;

void Sha256::Update(const void* bytes, size_t size) { EVP_DigestUpdate(state_->context, bytes, size); }

std::string Sha256::HexDigest() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_DigestFinal_ex(state_->context, digest, &size);
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (unsigned int i = 0; i < size; ++i) {
    out.push_back(kHex[digest[i] >> 4]);
    out.push_back(kHex[digest[i] & 15]);
  }
  return out;
}

std::string Sha256Hex(std::string_view bytes) {
  Sha256 hash;
  hash.Update(bytes.data(), bytes.size());
  return hash.HexDigest();
}

absl::StatusOr<std::string> Sha256File(const std::string& path) {
  SAGE_ASSIGN_OR_RETURN(const std::shared_ptr<MappedFile> file, MappedFile::Open(path));
  Sha256 hash;
  if (file->size() > 0) hash.Update(file->data(), file->size());
  return hash.HexDigest();
}

}  // namespace sage
