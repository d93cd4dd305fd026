// Files: read-only memory maps, whole reads with a bound, and writes that are either complete or absent.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sage {

// A read-only map of a regular file; the bytes live as long as the object. When the file is cut meanwhile, what it
// lost reads as zeros and a MapWatch tells (engine/base/map_guard.h).
class MappedFile {
 public:
  static absl::StatusOr<std::shared_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  const std::string& path() const { return path_; }
  // Gives the pages of [begin, begin + bytes) back to the page cache after their content was repacked.
  void Release(const void* begin, size_t bytes) const;

 private:
  MappedFile() = default;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
  std::string path_;
};

// Gives the whole pages inside [begin, begin + bytes) of any read-only file map back to the page cache; they come back
// from the file when somebody reads them again.
void ReleaseMappedPages(const void* begin, size_t bytes);

// NOT_FOUND, or INVALID_ARGUMENT when the file is larger than `max_bytes` or no regular file.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes = 512u << 20);

// Writes `path`.tmp.<pid>, fsyncs it, renames it over `path` and fsyncs the folder.
absl::Status WriteFileAtomic(const std::string& path, std::string_view content);
absl::Status FsyncPath(const std::string& path);  // file or folder

bool FileExists(const std::string& path);
bool IsDirectory(const std::string& path);
absl::Status MakeDirectories(const std::string& path);

// Joins a name that came from outside to a folder. Refuses absolute names, "..", NUL and backslashes.
absl::StatusOr<std::string> JoinInside(const std::string& folder, std::string_view name);

// Lower-case hex SHA-256.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void Update(const void* bytes, size_t size);
  std::string HexDigest();

 private:
  struct State;
  std::unique_ptr<State> state_;
};
std::string Sha256Hex(std::string_view bytes);
absl::StatusOr<std::string> Sha256File(const std::string& path);

}  // namespace sage
