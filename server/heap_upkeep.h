// Gives memory that was freed back to the system: glibc keeps it otherwise, and after a calibration or a request of
// many megabytes the process would look as large as it once was.
#pragma once

#include <cstddef>

#include "absl/time/time.h"

namespace sage::server {

class HeapUpkeep {
 public:
  // Call about once a second. Looks at most every five seconds, and trims when 16 MiB more lie free than after the last
  // time. True when it trimmed.
  bool Step(absl::Time now);

 private:
  absl::Time next_ = absl::InfinitePast();
  size_t free_after_trim_ = 0;
};

}  // namespace sage::server
