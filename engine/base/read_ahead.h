// What the next operator of a step will stream from memory: threads that wait for others ask for their share of it, so
// that the memory works while they do not.
//
// Bytes are only prefetched, never read: a stale announcement, or one of memory that is gone, does no harm.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

namespace sage {

class ReadAhead {
 public:
  struct Run {
    const void* data = nullptr;
    size_t bytes = 0;
  };
  // A matrix as it is streamed: its codes, and scales and offsets that are read beside them at the same pace.
  using Matrix = std::array<Run, 3>;
  static constexpr size_t kMatrices = 3;  // q, k and v

  // How far a thread is.
  struct Cursor {
    uint32_t version = 0;
    size_t matrix = 0, done = 0, bytes = 0;
  };

  // The matrices of the next operator in the order it takes them, at most kMatrices; none ends reading ahead.
  void Set(absl::Span<const Matrix> next) {
    size_t at = 0;
    for (const Matrix& matrix : next) {
      for (const Run& run : matrix) {
        runs_[at].data.store(static_cast<const uint8_t*>(run.data), std::memory_order_relaxed);
        runs_[at++].bytes.store(run.bytes, std::memory_order_relaxed);
      }
    }
    for (; at < runs_.size(); ++at) runs_[at].bytes.store(0, std::memory_order_relaxed);
    version_.fetch_add(1, std::memory_order_release);
  }

  // Asks for the next piece of the share of `worker`; false when there is none.
  bool Step(int worker, int workers, Cursor* cursor) const {
    const uint32_t version = version_.load(std::memory_order_acquire);
    if (cursor->version != version) *cursor = {version, 0, 0, 0};
    if (cursor->matrix == kMatrices || cursor->bytes >= kMostBytes) return false;
    const Announced* const runs = &runs_[cursor->matrix * 3];
    const size_t codes = runs[0].bytes.load(std::memory_order_relaxed) / static_cast<size_t>(workers);
    const size_t begin = cursor->done, end = begin + kPieceBytes < codes ? begin + kPieceBytes : codes;
    cursor->done = end;
    if (end == codes) {
      ++cursor->matrix;
      cursor->done = 0;
    }
    if (begin >= end) return true;
    for (int i = 0; i < 3; ++i) {
      const size_t share = runs[i].bytes.load(std::memory_order_relaxed) / static_cast<size_t>(workers);
      const uint8_t* const from = runs[i].data.load(std::memory_order_relaxed) + share * static_cast<size_t>(worker);
      const size_t first = share * begin / codes, last = share * end / codes;
      for (size_t at = first; at < last; at += 64) __builtin_prefetch(from + at, 0, 2);
      cursor->bytes += last - first;
    }
    return true;
  }

 private:
  static constexpr size_t kPieceBytes = 4096;       // new work waits for one at most
  static constexpr size_t kMostBytes = 192 * 1024;  // less than half of the smallest second cache level in use
  struct Announced {
    std::atomic<const uint8_t*> data{nullptr};
    std::atomic<size_t> bytes{0};
  };
  std::array<Announced, kMatrices * 3> runs_;
  alignas(64) std::atomic<uint32_t> version_{0};
};

}  // namespace sage
