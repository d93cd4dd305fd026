// Ranks that compute one model together: sums over all of them, the same bits everywhere.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"

namespace sage {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // data[i] becomes the sum over the ranks in their order. Every rank calls it in the same order with the same count;
  // on a device it is enqueued, and an error comes with the next Download.
  virtual absl::Status Sum(float* data, int64_t count) = 0;
};

// `size` ranks of this process, one a thread, that meet in its memory.
std::vector<std::unique_ptr<Communicator>> SharedMemoryCommunicators(int size);

}  // namespace sage
