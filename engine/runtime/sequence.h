// A request and its choices as the step thread sees them.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/api/engine.h"
#include "engine/runtime/kv_pool.h"
#include "engine/runtime/stop_matcher.h"

namespace sage {

// Only `cancelled` is touched by other threads once the request has been queued.
struct GenerationRequest {
  GenerateSpec spec;
  GenerationSink sink;
  uint64_t seed = 0;
  std::atomic<bool> cancelled{false};
  absl::Time submitted_at, scheduled_at = absl::InfiniteFuture(), first_token_at = absl::InfiniteFuture();
  int queued = 0;      // choices that have never run
  int unfinished = 0;  // choices without a finish reason
  GenerationUsage usage;
  absl::Status status;  // the first failure of a choice

  // Why the request must end now; OK while it may go on.
  absl::Status Verdict(absl::Time now) const {
    if (!status.ok()) return status;
    if (cancelled.load(std::memory_order_acquire)) return absl::CancelledError("the request was cancelled");
    if (now >= spec.deadline) return absl::DeadlineExceededError("the request's deadline passed");
    return absl::OkStatus();
  }
};

inline constexpr uint64_t kAnyPrefix = UINT64_MAX;  // far from every page's own number

// One choice of a request. `ids` is the prompt and what was generated; positions below `computed` are in the KV pages.
struct Sequence {
  std::shared_ptr<GenerationRequest> request;
  int choice = 0;
  std::vector<int32_t> ids;
  int64_t prompt_length = 0;
  int64_t computed = 0;
  std::vector<int32_t> pages;
  std::vector<int32_t> draft;  // of this step: guesses at the ids behind the newest
  int64_t draft_length = 0;    // how many to guess; 0 = the first number
  // Sequences share pages only with those whose positions mean the same: dynamic rope scaling depends on the prompt's
  // length and, behind the prompt, on where it ended.
  uint64_t prefix_root = kAnyPrefix;
  int64_t prefix_positions = INT64_MAX;  // those that may be shared
  PrefixChain prefix{kAnyPrefix, 0};
  bool ever_ran = false;
  bool ended = false;
  std::unique_ptr<StreamDecoder> text;  // null without tokenizer
  StopMatcher stops;
  absl::Time last_token_at;

  int64_t length() const { return static_cast<int64_t>(ids.size()); }
  int64_t output_length() const { return length() - prompt_length; }
  absl::Span<const int32_t> output_ids() const {
    return absl::MakeConstSpan(ids).subspan(static_cast<size_t>(prompt_length));
  }
};

}  // namespace sage
