// Admission and hand-over; the mutex is held for a few assignments at a time, never during a step.
#include "engine/runtime/inbox.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {

absl::Status Inbox::CheckOpen() const {
  if (!draining_) return absl::OkStatus();
  return MakeError(absl::StatusCode::kUnavailable, "ENGINE_DRAINING", "engine: takes no new requests while it stops");
}

absl::Status Inbox::Full(int64_t requests, int64_t tokens) const {
  const absl::Duration retry = std::clamp(waited_, absl::Milliseconds(100), absl::Minutes(1));
  return MakeError(absl::StatusCode::kResourceExhausted, "QUEUE_FULL",
                   absl::StrCat("queue: at most ", limits_.max_queue_requests, " requests and ",
                                limits_.max_queue_tokens, " prompt ids may wait, got ", requests + 1, " and ", tokens),
                   {{"waiting_requests", absl::StrCat(requests)},
                    {"waiting_tokens", absl::StrCat(waiting_tokens())},
                    {"retry_after_ms", absl::StrCat(absl::ToInt64Milliseconds(retry))}});
}

absl::Status Inbox::Push(std::shared_ptr<GenerationRequest> request) {
  const int64_t tokens = static_cast<int64_t>(request->spec.prompt_ids.size()) * request->spec.n;
  std::lock_guard<std::mutex> lock(mutex_);
  SAGE_RETURN_IF_ERROR(CheckOpen());
  const int64_t requests_now = waiting_requests(), tokens_now = waiting_tokens();
  if (requests_now + 1 > limits_.max_queue_requests || tokens_now + tokens > limits_.max_queue_tokens) {
    return Full(requests_now, tokens_now + tokens);
  }
  waiting_requests_.store(requests_now + 1, std::memory_order_relaxed);
  waiting_tokens_.store(tokens_now + tokens, std::memory_order_relaxed);
  new_work_.requests.push_back(std::move(request));
  sleeping_ = false;
  wake_.notify_one();
  return absl::OkStatus();
}

template <typename Job>
absl::Status Inbox::PushJob(std::vector<std::shared_ptr<Job>>& jobs, std::shared_ptr<Job> job) {
  std::lock_guard<std::mutex> lock(mutex_);
  SAGE_RETURN_IF_ERROR(CheckOpen());
  jobs.push_back(std::move(job));
  sleeping_ = false;
  wake_.notify_one();
  return absl::OkStatus();
}

absl::Status Inbox::PushScore(std::shared_ptr<ScoreJob> job) { return PushJob(new_work_.scores, std::move(job)); }

absl::Status Inbox::PushProfile(std::shared_ptr<ProfileJob> job) { return PushJob(new_work_.profiles, std::move(job)); }

bool Inbox::Take(bool busy, Work* work) {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!busy && new_work_.empty()) {
    sleeping_ = true;
    idle_.notify_all();
    if (stopping_) return false;
    wake_.wait(lock);
  }
  work->requests.swap(new_work_.requests);
  work->scores.swap(new_work_.scores);
  work->profiles.swap(new_work_.profiles);
  return true;
}

void Inbox::LeftQueue(int64_t requests, int64_t tokens, absl::Duration waited) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (waited > absl::ZeroDuration()) waited_ = waited;
  waiting_requests_.store(waiting_requests() - requests, std::memory_order_relaxed);
  waiting_tokens_.store(waiting_tokens() - tokens, std::memory_order_relaxed);
}

void Inbox::Drain(absl::Time deadline) {
  std::unique_lock<std::mutex> lock(mutex_);
  draining_ = true;
  drain_deadline_ = std::min(drain_deadline_, deadline);
  idle_.notify_all();  // another caller may be waiting for a later deadline
  while (!sleeping_) {
    const absl::Time now = absl::Now();
    if (now >= drain_deadline_) cancel_all_.store(true, std::memory_order_release);
    if (cancel_all()) {
      idle_.wait(lock);
    } else {  // an infinite deadline would overflow the clock's arithmetic
      idle_.wait_until(lock, absl::ToChronoTime(std::min(drain_deadline_, now + absl::Hours(24))));
    }
  }
  stopping_ = true;
  wake_.notify_all();
}

}  // namespace sage
