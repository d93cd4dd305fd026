// f32 values that a calibration keeps from layer to layer: in memory, or in a file without a name that the system
// writes out when memory runs short.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "engine/tensor/tensor.h"

namespace sage {

class StateBuffer {
 public:
  StateBuffer() = default;
  // Zero-filled. spill_folder: "" = in memory; else the blocks are reserved in a file there, which vanishes with the
  // buffer or the process. RESOURCE_EXHAUSTED (SPILL_FAILED) when the folder's disk has no room.
  static absl::StatusOr<StateBuffer> Allocate(int64_t rows, int64_t columns, const std::string& spill_folder);
  StateBuffer(StateBuffer&& other) noexcept;
  StateBuffer& operator=(StateBuffer&& other) noexcept;
  ~StateBuffer();

  float* data() { return data_; }
  const float* data() const { return data_; }
  bool spilled() const { return map_ != nullptr; }
  // Takes a file's pages out of this process until they are read again; nothing is lost.
  void Release();

 private:
  Tensor memory_;
  void* map_ = nullptr;
  size_t map_bytes_ = 0;
  float* data_ = nullptr;
};

}  // namespace sage
