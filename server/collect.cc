// The event queue.
#include "server/collect.h"

#include "absl/time/clock.h"

namespace sage::server {

GenerationSink EventQueue::Sink(std::shared_ptr<EventQueue> self) {
  return [self](const GenerationEvent& event) {
    std::shared_ptr<GenerationHandle> cancel;
    {
      std::lock_guard lock(self->mutex_);
      if ((self->overflowed_ || self->events_.size() >= self->max_events_) && !event.last) {
        if (!self->overflowed_) cancel = self->handle_;
        self->overflowed_ = true;
      } else {
        self->events_.push_back(event);
      }
    }
    if (cancel != nullptr) cancel->Cancel();
    self->wake_.notify_one();
  };
}

void EventQueue::SetHandle(std::shared_ptr<GenerationHandle> handle) {
  bool cancel;
  {
    std::lock_guard lock(mutex_);
    handle_ = handle;
    cancel = overflowed_;
  }
  if (cancel) handle->Cancel();
}

std::optional<GenerationEvent> EventQueue::Next(absl::Time until) {
  std::unique_lock lock(mutex_);
  const auto wait = absl::ToChronoMilliseconds(std::max(until - absl::Now(), absl::ZeroDuration()));
  if (!wake_.wait_for(lock, wait, [&] { return !events_.empty(); })) return std::nullopt;
  GenerationEvent event = std::move(events_.front());
  events_.pop_front();
  return event;
}

bool EventQueue::overflowed() const {
  std::lock_guard lock(mutex_);
  return overflowed_;
}

}  // namespace sage::server
