// A tensor, or a shared map of an unlinked file.
#include "engine/runtime/state_buffer.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

absl::Status SpillFailed(const std::string& folder, size_t bytes, int error) {
  return MakeError(
      absl::StatusCode::kResourceExhausted, "SPILL_FAILED",
      absl::StrCat(folder, ": must have room for ", bytes, " bytes of activations, got: ", std::strerror(error)),
      {{"bytes", absl::StrCat(bytes)}, {"folder", folder}});
}

}  // namespace

absl::StatusOr<StateBuffer> StateBuffer::Allocate(int64_t rows, int64_t columns, const std::string& spill_folder) {
  StateBuffer out;
  if (spill_folder.empty()) {
    SAGE_ASSIGN_OR_RETURN(out.memory_, Tensor::Allocate(DType::kF32, {rows, columns}));
    out.data_ = out.memory_.as<float>();
    return out;
  }
  SAGE_ASSIGN_OR_RETURN(const int64_t count, ElementCount({rows, columns}));
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  std::string path = spill_folder + "/.activations-XXXXXX";
  const int file = mkostemp(path.data(), O_CLOEXEC);
  if (file < 0) return SpillFailed(spill_folder, bytes, errno);
  unlink(path.c_str());
  // Blocks are reserved now: a full disk is an error here and not a signal at some later write.
  const int error = posix_fallocate(file, 0, static_cast<off_t>(bytes));
  if (error != 0) {
    close(file);
    return SpillFailed(spill_folder, bytes, error);
  }
  void* map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  const int failed = errno;
  close(file);
  if (map == MAP_FAILED) return SpillFailed(spill_folder, bytes, failed);
  out.map_ = map;
  out.map_bytes_ = bytes;
  out.data_ = static_cast<float*>(map);
  return out;
}

StateBuffer::StateBuffer(StateBuffer&& other) noexcept { *this = std::move(other); }

StateBuffer& StateBuffer::operator=(StateBuffer&& other) noexcept {
  if (this == &other) return *this;
  if (map_ != nullptr) munmap(map_, map_bytes_);
  memory_ = std::move(other.memory_);
  map_ = std::exchange(other.map_, nullptr);
  map_bytes_ = std::exchange(other.map_bytes_, 0);
  data_ = std::exchange(other.data_, nullptr);
  return *this;
}

StateBuffer::~StateBuffer() {
  if (map_ != nullptr) munmap(map_, map_bytes_);
}

void StateBuffer::Release() {
  if (map_ != nullptr) madvise(map_, map_bytes_, MADV_DONTNEED);  // of a shared map: its pages stay in the file
}

}  // namespace sage
