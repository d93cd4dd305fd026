// Memory that a backend's kernels read and write: the host's own, or a device's with copies between the two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sage {

// Owns bytes of a device; they go back when the last owner goes. The bytes are zero at first.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(std::shared_ptr<void> data, size_t bytes) : data_(std::move(data)), bytes_(bytes) {}

  size_t bytes() const { return bytes_; }
  bool empty() const { return data_ == nullptr; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }

 private:
  std::shared_ptr<void> data_;
  size_t bytes_ = 0;
};

class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  // Kernels read host pointers: what is written in place needs no copy.
  virtual bool is_host() const = 0;
  // RESOURCE_EXHAUSTED names the bytes asked for and what is held already.
  virtual absl::StatusOr<DeviceBuffer> Allocate(size_t bytes) = 0;
  // Copies happen in the order of the calls, among the kernels. `from` may change as soon as Upload returns.
  virtual void Upload(void* to, const void* from, size_t bytes) = 0;
  virtual void Copy(void* to, const void* from, size_t bytes) = 0;
  // Waits for the bytes. Returns the first error of anything enqueued since the last Download.
  virtual absl::Status Download(void* to, const void* from, size_t bytes) = 0;
  // Until everything enqueued is done; its errors stay for the next Download.
  virtual void Wait() = 0;
  // Bytes that can still be allocated; -1 when it does not know (the host's are limited by more than it sees).
  virtual int64_t AvailableBytes() const { return -1; }
};

// The host's: buffers are tensors (aligned, huge pages), copies are copies.
DeviceMemory& HostMemory();

}  // namespace sage
