// Memory of packed weights on huge pages: a small model is made of matrices far below 2 MiB, and on pages of 4 KiB a
// product that streams them loses a tenth and more of the read bandwidth.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"

namespace sage::cpu {

// One run of bytes, zero at first, aligned to 64, with a spare line behind it. Small runs share a chunk of huge pages,
// which lives as long as any of them.
class WeightMemory {
 public:
  WeightMemory() = default;
  static absl::StatusOr<WeightMemory> Allocate(size_t bytes);

  bool empty() const { return data_ == nullptr; }
  size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_.get());
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_.get());
  }

 private:
  WeightMemory(std::shared_ptr<uint8_t> data, size_t bytes) : data_(std::move(data)), bytes_(bytes) {}

  std::shared_ptr<uint8_t> data_;
  size_t bytes_ = 0;
};

}  // namespace sage::cpu
