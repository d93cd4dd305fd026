// flock on a file that stays: removing it at the end would let two processes lock two files of one name.
#include "server/data_dir_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/base/file_error.h"
#include "engine/base/status.h"

namespace sage::server {

absl::StatusOr<std::unique_ptr<DataDirLock>> DataDirLock::Take(const std::string& data_dir) {
  const std::string path = data_dir + "/daemon.lock";
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return FileError(errno, "cannot open", path);
  std::unique_ptr<DataDirLock> lock(new DataDirLock(fd));
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    std::string pid = ReadFile(path, 64).value_or("");
    absl::StripAsciiWhitespace(&pid);
    return MakeError(absl::StatusCode::kFailedPrecondition, "DATA_DIR_IN_USE",
                     absl::StrCat("data-dir: must belong to one daemon, but ", data_dir, " is in use by process ",
                                  pid.empty() ? "?" : pid, "; stop it or name another folder"),
                     {{"data_dir", data_dir}, {"pid", pid}});
  }
  const std::string pid = absl::StrCat(getpid(), "\n");
  if (ftruncate(fd, 0) != 0 || pwrite(fd, pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    return FileError(errno, "cannot write", path);
  }
  return lock;
}

DataDirLock::~DataDirLock() { close(fd_); }

}  // namespace sage::server
