// Events of a generation for a thread that waits for them: the HTTP threads.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>

#include "absl/status/statusor.h"
#include "engine/api/engine.h"

namespace sage::server {

// A bounded queue of events between the step thread and one waiting thread. When it is full the generation is cancelled
// and nothing more is kept but the last event.
class EventQueue {
 public:
  explicit EventQueue(size_t max_events) : max_events_(max_events) {}

  GenerationSink Sink(std::shared_ptr<EventQueue> self);
  // What to cancel when the queue is full.
  void SetHandle(std::shared_ptr<GenerationHandle> handle);
  // The next event, or nullopt when `until` passed.
  std::optional<GenerationEvent> Next(absl::Time until);
  bool overflowed() const;

 private:
  const size_t max_events_;
  std::shared_ptr<GenerationHandle> handle_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<GenerationEvent> events_;
  bool overflowed_ = false;
};

}  // namespace sage::server
