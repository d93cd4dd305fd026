// Where other threads meet the step thread: new requests, scoring jobs, draining and stopping.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/runtime/engine_parts.h"
#include "engine/runtime/profile.h"
#include "engine/runtime/score.h"
#include "engine/runtime/sequence.h"

namespace sage {

class Inbox {
 public:
  explicit Inbox(const AdmissionLimits& limits) : limits_(limits) {}

  // Checks both bounds and adds in one step. RESOURCE_EXHAUSTED (QUEUE_FULL), UNAVAILABLE (ENGINE_DRAINING).
  absl::Status Push(std::shared_ptr<GenerationRequest> request);
  absl::Status PushScore(std::shared_ptr<ScoreJob> job);
  absl::Status PushProfile(std::shared_ptr<ProfileJob> job);

  struct Work {
    std::vector<std::shared_ptr<GenerationRequest>> requests;
    std::vector<std::shared_ptr<ScoreJob>> scores;
    std::vector<std::shared_ptr<ProfileJob>> profiles;
    bool empty() const { return requests.empty() && scores.empty() && profiles.empty(); }
  };
  // Step thread: what is new. Sleeps while there is nothing new and `busy` is false. False when the engine stops.
  bool Take(bool busy, Work* work);
  // Step thread: choices that have run or ended no longer count. `waited`, where some now run, is how long they did:
  // who is refused hears to come back after as long.
  void LeftQueue(int64_t requests, int64_t tokens, absl::Duration waited = absl::ZeroDuration());

  // Refuses new work, waits until what was accepted has ended (cancelling it at the earliest deadline of all callers)
  // and lets the step thread go.
  void Drain(absl::Time deadline);
  bool cancel_all() const { return cancel_all_.load(std::memory_order_acquire); }

  int64_t waiting_requests() const { return waiting_requests_.load(std::memory_order_relaxed); }
  int64_t waiting_tokens() const { return waiting_tokens_.load(std::memory_order_relaxed); }

 private:
  absl::Status CheckOpen() const;
  absl::Status Full(int64_t requests, int64_t tokens) const;
  template <typename Job>
  absl::Status PushJob(std::vector<std::shared_ptr<Job>>& jobs, std::shared_ptr<Job> job);

  const AdmissionLimits limits_;
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  Work new_work_;
  bool draining_ = false, stopping_ = false;
  absl::Time drain_deadline_ = absl::InfiniteFuture();
  absl::Duration waited_ = absl::ZeroDuration();  // of those that left the queue last
  bool sleeping_ = false;  // the step thread found nothing to do, and nothing has come since
  std::atomic<bool> cancel_all_{false};
  std::atomic<int64_t> waiting_requests_{0}, waiting_tokens_{0};  // written under mutex_
};

}  // namespace sage
