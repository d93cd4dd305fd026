// Cancellation and progress of long work: a shared flag read at safe points, and a callback that reports how far it is.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"

namespace sage {

class CancelToken {
 public:
  void Cancel() { cancelled_.store(true, std::memory_order_release); }
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
  absl::Status Check() const {
    return cancelled() ? absl::CancelledError("cancelled by the caller") : absl::OkStatus();
  }

 private:
  std::atomic<bool> cancelled_{false};
};

// One report of progress: `done` of `total` `unit`s ("layers", "bytes", "windows"); `stage` says what runs now.
struct Progress {
  std::string stage;
  int64_t done = 0;
  int64_t total = 0;
  std::string unit;
};
using ProgressFn = std::function<void(const Progress&)>;

}  // namespace sage
