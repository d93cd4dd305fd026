// Allocation and conversion of dense tensors.
#include "engine/tensor/tensor.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "engine/tensor/float_convert.h"

namespace sage {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kHugeThreshold = size_t{4} << 20;

}  // namespace

absl::StatusOr<int64_t> ElementCount(const Shape& shape) {
  int64_t count = 1;
  for (const int64_t d : shape) {
    if (d < 0) return absl::InvalidArgumentError(absl::StrCat("negative dimension in shape ", ShapeText(shape)));
    if (__builtin_mul_overflow(count, d, &count) || count > (int64_t{1} << 62)) {
      return absl::InvalidArgumentError(absl::StrCat("shape ", ShapeText(shape), " overflows"));
    }
  }
  return count;
}

std::string ShapeText(const Shape& shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

int64_t TensorView::elements() const {
  int64_t count = 1;
  for (const int64_t d : shape) count *= d;
  return count;
}

void Tensor::Free::operator()(uint8_t* p) const {
  if (bytes >= kHugeThreshold) {
    munmap(p, bytes);
  } else {
    std::free(p);
  }
}

absl::StatusOr<Tensor> Tensor::Allocate(DType dtype, Shape shape) {
  SAGE_ASSIGN_OR_RETURN(const int64_t count, ElementCount(shape));
  Tensor out;
  out.dtype_ = dtype;
  out.shape_ = std::move(shape);
  out.bytes_ = static_cast<size_t>(count) * DTypeSize(dtype);
  const size_t padded = (out.bytes_ + 127) / 64 * 64;  // one spare line: vector loads may read past the last element
  if (padded >= kHugeThreshold) {
    // Anonymous maps are zero already. Over-map by one huge page, then trim so that the start is 2 MiB aligned.
    const size_t size = (padded + kHugePage - 1) / kHugePage * kHugePage;
    void* raw = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) {
      return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", size, " bytes"));
    }
    const uintptr_t begin = reinterpret_cast<uintptr_t>(raw);
    const uintptr_t aligned = (begin + kHugePage - 1) / kHugePage * kHugePage;
    if (aligned > begin) munmap(raw, aligned - begin);
    const uintptr_t tail = aligned + size;
    const uintptr_t end = begin + size + kHugePage;
    if (end > tail) munmap(reinterpret_cast<void*>(tail), end - tail);
    madvise(reinterpret_cast<void*>(aligned), size, MADV_HUGEPAGE);
    out.data_ = std::unique_ptr<uint8_t[], Free>(reinterpret_cast<uint8_t*>(aligned), Free(size));
    return out;
  }
  auto* raw = static_cast<uint8_t*>(std::aligned_alloc(64, padded));
  if (raw == nullptr) return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", padded, " bytes"));
  std::memset(raw, 0, padded);
  out.data_ = std::unique_ptr<uint8_t[], Free>(raw, Free(padded));
  return out;
}

bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 || dtype == DType::kF64;
}

float ElementAsFloat(const TensorView& tensor, int64_t i) {
  switch (tensor.dtype) {
    case DType::kF32:
      return tensor.as<float>()[i];
    case DType::kF16:
      return F16ToFloat(tensor.as<uint16_t>()[i]);
    case DType::kBF16:
      return BF16ToFloat(tensor.as<uint16_t>()[i]);
    case DType::kF64:
      return static_cast<float>(tensor.as<double>()[i]);
    default:
      return 0.0f;
  }
}

absl::Status ToFloat(const TensorView& tensor, float* out) {
  if (!IsFloat(tensor.dtype)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "DTYPE_NOT_FLOAT",
                     absl::StrCat("tensor must be a float type, got ", std::string(DTypeName(tensor.dtype))));
  }
  const int64_t n = tensor.elements();
  if (tensor.dtype == DType::kF32) {
    std::memcpy(out, tensor.data, static_cast<size_t>(n) * sizeof(float));
    return absl::OkStatus();
  }
  for (int64_t i = 0; i < n; ++i) out[i] = ElementAsFloat(tensor, i);
  return absl::OkStatus();
}

}  // namespace sage
