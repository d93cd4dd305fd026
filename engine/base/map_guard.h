// Files that shrink while they are mapped: reading beyond their new end is SIGBUS, which would end the process. Here
// such a read gives zeros, the map is marked as damaged, and whoever works on the file is told with MODEL_FILE_CHANGED.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace sage {

// Guards [data, data + bytes), a read-only map of `path`, until UnguardMap(data); that must come before munmap. The
// first call installs the handler of SIGBUS; a fault outside the guarded maps goes to whoever had it before.
void GuardMap(const void* data, size_t bytes, const std::string& path);
void UnguardMap(const void* data);

// What an engine or an operation holds to learn that a file it reads has changed under it since the watch was made.
// Make it before the files are opened. Check from any thread; it costs one load while no map is damaged.
class MapWatch {
 public:
  MapWatch() : MapWatch(std::vector<std::string>()) {}  // of nothing
  // Files, or folders whose files are meant; "" is none.
  explicit MapWatch(std::vector<std::string> paths);
  // DATA_LOSS (MODEL_FILE_CHANGED) with the file's name: what was computed since may hold zeros for weights.
  absl::Status Check() const;

 private:
  std::vector<std::string> paths_;
  uint64_t since_;
};

}  // namespace sage
