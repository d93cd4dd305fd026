// glibc counts what it gave back as free still, so only growth since the last trim says that there is work.
#include "server/heap_upkeep.h"

#include <malloc.h>

#include <algorithm>

namespace sage::server {
namespace {

constexpr size_t kWorthTrimming = size_t{16} << 20;
constexpr absl::Duration kBetweenLooks = absl::Seconds(5);

}  // namespace

bool HeapUpkeep::Step(absl::Time now) {
  if (now < next_) return false;
  next_ = now + kBetweenLooks;
  const size_t free = mallinfo2().fordblks;  // of all arenas
  free_after_trim_ = std::min(free_after_trim_, free);
  if (free - free_after_trim_ < kWorthTrimming) return false;
  malloc_trim(0);
  free_after_trim_ = mallinfo2().fordblks;
  return true;
}

}  // namespace sage::server
