// How much memory this process may still take: the machine's figure, lowered by a control group's limit and by what
// engines have been promised and not touched yet.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"

namespace sage {

// "MemAvailable" of a /proc/meminfo text in bytes; -1 when it is not there.
int64_t ParseMemAvailable(std::string_view meminfo);
// Bytes that the system leaves now, whatever was promised; -1 when it does not say. root stands before /proc and /sys.
int64_t SystemMemory(const std::string& root = "");
// Bytes available now; -1 when the system does not say.
int64_t AvailableMemory();

// Host memory that its owner fills little by little, as KV pages are. The system counts what was touched and this
// counts the rest, otherwise every engine would be promised the same bytes and the last one to fill them would end the
// process.
class MemoryPromise {
 public:
  // Promises `kept` bytes if `needed` fit what is available, at one time for all threads. Null if they do not;
  // `available` says what there was (-1 = not known: promised).
  static std::unique_ptr<MemoryPromise> Take(int64_t needed, int64_t kept, int64_t* available);
  ~MemoryPromise();
  MemoryPromise(const MemoryPromise&) = delete;
  MemoryPromise& operator=(const MemoryPromise&) = delete;

  // Where the promised memory lies; until this is said nothing of it counts as touched. It outlives the promise.
  void LiesAt(std::vector<absl::Span<const uint8_t>> parts);

 private:
  friend int64_t AvailableMemory();
  explicit MemoryPromise(int64_t bytes) : bytes_(bytes) {}
  int64_t Untouched() const;
  static int64_t AvailableLocked();

  int64_t bytes_;
  std::vector<absl::Span<const uint8_t>> parts_;
};

}  // namespace sage
