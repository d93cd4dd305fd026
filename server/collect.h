// One whole generation gathered from an engine's events, for callers that wait: HTTP threads and ModelInfer.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>

#include "absl/status/statusor.h"
#include "engine/api/engine.h"

namespace sage::server {

// A bounded queue of events between the step thread and one waiting thread.
class EventQueue {
 public:
  GenerationSink Sink(std::shared_ptr<EventQueue> self);
  // The next event, or nullopt when `until` passed.
  std::optional<GenerationEvent> Next(absl::Time until);
  bool overflowed() const;

 private:
  static constexpr size_t kMaxEvents = 65536;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<GenerationEvent> events_;
  bool overflowed_ = false;
};

}  // namespace sage::server
