// One daemon to a data folder: two would write the same operations and the same unfinished calibrations.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace sage::server {

class DataDirLock {
 public:
  // FAILED_PRECONDITION (DATA_DIR_IN_USE) when another process holds DATA_DIR/daemon.lock; its pid is in the message.
  // The system releases the lock when the process ends, however it ends.
  static absl::StatusOr<std::unique_ptr<DataDirLock>> Take(const std::string& data_dir);
  ~DataDirLock();
  DataDirLock(const DataDirLock&) = delete;
  DataDirLock& operator=(const DataDirLock&) = delete;

 private:
  explicit DataDirLock(int fd) : fd_(fd) {}
  const int fd_;
};

}  // namespace sage::server
