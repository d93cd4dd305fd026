// Dense row-major tensors: `TensorView` never owns, `Tensor` owns aligned memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/tensor/dtype.h"

namespace sage {

using Shape = std::vector<int64_t>;

// Product of the dimensions; INVALID_ARGUMENT on a negative dimension or overflow past 2^62.
absl::StatusOr<int64_t> ElementCount(const Shape& shape);
std::string ShapeText(const Shape& shape);  // "[576, 1536]"

struct TensorView {
  DType dtype = DType::kF32;
  Shape shape;
  const void* data = nullptr;
  size_t bytes = 0;

  bool empty() const { return data == nullptr; }
  int64_t dim(size_t i) const { return shape[i]; }
  int64_t elements() const;
  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

class Tensor {
 public:
  Tensor() = default;
  // 64-byte aligned, zero-filled; 2 MiB aligned with huge pages advised from 4 MiB up.
  static absl::StatusOr<Tensor> Allocate(DType dtype, Shape shape);

  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  size_t bytes() const { return bytes_; }
  bool empty() const { return data_ == nullptr; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_.get());
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_.get());
  }
  TensorView view() const { return {dtype_, shape_, data_.get(), bytes_}; }

 private:
  struct Free {
    Free() : bytes(0) {}
    explicit Free(size_t n) : bytes(n) {}
    size_t bytes;
    void operator()(uint8_t* p) const;
  };
  DType dtype_ = DType::kF32;
  Shape shape_;
  size_t bytes_ = 0;
  std::unique_ptr<uint8_t[], Free> data_;
};

// Reads element i of an F32/F16/BF16/F64 tensor as f32; CHECK-free: the caller has validated the dtype.
float ElementAsFloat(const TensorView& tensor, int64_t i);
// Converts a whole float tensor to f32. INVALID_ARGUMENT on another dtype.
absl::Status ToFloat(const TensorView& tensor, float* out);
bool IsFloat(DType dtype);

}  // namespace sage
