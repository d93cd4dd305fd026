// The event queue.
#include "server/collect.h"

#include "absl/time/clock.h"

namespace sage::server {

GenerationSink EventQueue::Sink(std::shared_ptr<EventQueue> self) {
  return [self](const GenerationEvent& event) {
    {
      std::lock_guard lock(self->mutex_);
      if (self->events_.size() >= kMaxEvents && !event.last) {
        self->overflowed_ = true;
        return;
      }
      self->events_.push_back(event);
    }
    self->wake_.notify_one();
  };
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
