// Chooses the rows of a step: decode rows first, then prompt chunks, then new sequences, strictly in order of arrival.
//
// A sequence gets the pages of all its ids when it is admitted and one more at each page boundary. When none is free
// the youngest running sequence gives its pages back and waits at the head of the queue; its positions are computed
// again later, to the same bits. The oldest is never preempted, so every sequence finishes. Step thread only.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "engine/runtime/kv_pool.h"
#include "engine/runtime/sequence.h"

namespace sage {

struct SchedulerLimits {
  int64_t max_seqs = 64;
  int64_t max_step_tokens = 512;  // at least max_seqs
  // Prompt rows beside decode rows: those who already read are not made to wait for a whole chunk. 0 = no such bound.
  int64_t mixed_prompt_tokens = 0;
  int64_t max_model_len = INT64_MAX;
  bool drafts = false;  // speculate by n-grams
};

struct ScheduledRows {
  std::shared_ptr<Sequence> sequence;
  int64_t rows = 0;      // positions [computed, computed + rows), drafted ones among them
  bool samples = false;  // the last row, and each drafted one, gives an id
  int64_t outputs() const { return samples ? 1 + static_cast<int64_t>(sequence->draft.size()) : 0; }
};

struct StepPlan {
  std::vector<ScheduledRows> slices;
  int64_t rows = 0;
  int64_t preempted = 0;
  std::vector<std::shared_ptr<Sequence>> admitted;  // those that run for the first time
};

class Scheduler {
 public:
  Scheduler(KvPool& pool, const SchedulerLimits& limits) : pool_(pool), limits_(limits) {}

  void Add(std::shared_ptr<Sequence> sequence) { waiting_.push_back(std::move(sequence)); }
  StepPlan Schedule();
  // Takes out a sequence that has finished; its pages are free at once.
  void Remove(const Sequence& sequence);
  // Takes out every sequence, running or waiting, for which `ends` is true.
  std::vector<std::shared_ptr<Sequence>> Reap(absl::FunctionRef<bool(const Sequence&)> ends);

  bool idle() const { return running_.empty() && waiting_.empty(); }
  int64_t running() const { return static_cast<int64_t>(running_.size()); }
  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }

 private:
  // Makes room for `sequence` to hold `positions`, preempting younger ones. False when it was preempted itself.
  bool MakeRoom(const std::shared_ptr<Sequence>& sequence, int64_t positions, StepPlan& plan);
  void PreemptYoungest(StepPlan& plan);
  // Guesses the ids behind the newest when there is room for them; nobody gives way to a guess.
  void Draft(Sequence& sequence, int64_t rows);
  void PlaceDecode(const std::shared_ptr<Sequence>& sequence, StepPlan& plan);
  void Place(const std::shared_ptr<Sequence>& sequence, int64_t rows, StepPlan& plan);
  // Choices of one request wait until the first has computed the prompt they share.
  bool WaitsForSibling(const Sequence& sequence) const;
  // Shared pages of the ids it begins with and new ones for the rest; false (and nothing taken) when too few are free.
  bool TakePages(Sequence& sequence);
  void Admit(int64_t budget, StepPlan& plan);

  KvPool& pool_;
  const SchedulerLimits limits_;
  std::vector<std::shared_ptr<Sequence>> running_;  // oldest first
  std::deque<std::shared_ptr<Sequence>> waiting_;
};

}  // namespace sage
