// The scheduling rules: fairness is the order of arrival, memory is taken from the youngest.
#include "engine/runtime/scheduler.h"

#include <algorithm>

namespace sage {

void Scheduler::Place(const std::shared_ptr<Sequence>& sequence, int64_t rows, StepPlan& plan) {
  plan.slices.push_back({sequence, rows, sequence->computed + rows == sequence->length()});
  plan.rows += rows;
}

void Scheduler::PreemptYoungest(StepPlan& plan) {
  std::shared_ptr<Sequence> victim = running_.back();
  running_.pop_back();
  pool_.Release(victim->pages);
  victim->computed = 0;
  ++plan.preempted;
  std::erase_if(plan.slices, [&](const ScheduledRows& slice) {
    if (slice.sequence != victim) return false;
    plan.rows -= slice.rows;
    return true;
  });
  // Everything that runs is older than everything that waits, and the youngest goes first: the head keeps the order.
  waiting_.push_front(std::move(victim));
}

bool Scheduler::MakeRoom(const std::shared_ptr<Sequence>& sequence, int64_t positions, StepPlan& plan) {
  while (!pool_.Grow(sequence->pages, positions)) {
    const bool itself = running_.back() == sequence;
    PreemptYoungest(plan);
    if (itself) return false;
  }
  return true;
}

void Scheduler::Admit(int64_t budget, StepPlan& plan) {
  while (plan.rows < budget && running() < limits_.max_seqs && !waiting_.empty()) {
    const std::shared_ptr<Sequence>& next = waiting_.front();
    // A page for each running sequence stays free, so that the newcomer is not preempted at the next page boundary.
    const int64_t needed = pool_.PagesFor(next->length()) + running();
    if (needed > pool_.free() && !(running_.empty() && pool_.PagesFor(next->length()) <= pool_.free())) return;
    if (!pool_.Grow(next->pages, next->length())) return;
    running_.push_back(next);
    waiting_.pop_front();
    const std::shared_ptr<Sequence>& sequence = running_.back();
    if (!sequence->ever_ran) {
      sequence->ever_ran = true;
      plan.admitted.push_back(sequence);
    }
    Place(sequence, std::min(sequence->length(), budget - plan.rows), plan);
  }
}

StepPlan Scheduler::Schedule() {
  StepPlan plan;
  // Preemption shortens running_ from its end while it is walked.
  for (size_t i = 0; i < running_.size() && plan.rows < limits_.max_step_tokens; ++i) {
    const std::shared_ptr<Sequence> sequence = running_[i];
    if (sequence->length() - sequence->computed != 1) continue;
    if (MakeRoom(sequence, sequence->length(), plan)) Place(sequence, 1, plan);
  }
  int64_t budget = limits_.max_step_tokens;
  if (plan.rows > 0 && limits_.mixed_prompt_tokens > 0) {
    budget = std::min(budget, plan.rows + limits_.mixed_prompt_tokens);
  }
  for (size_t i = 0; i < running_.size() && plan.rows < budget; ++i) {
    const std::shared_ptr<Sequence> sequence = running_[i];
    const int64_t missing = sequence->length() - sequence->computed;
    if (missing <= 1) continue;  // its pages are there since admission
    Place(sequence, std::min(missing, budget - plan.rows), plan);
  }
  if (plan.preempted == 0) Admit(budget, plan);
  return plan;
}

void Scheduler::Remove(const Sequence& sequence) {
  const auto same = [&](const std::shared_ptr<Sequence>& s) { return s.get() == &sequence; };
  const auto running = std::find_if(running_.begin(), running_.end(), same);
  if (running != running_.end()) {
    pool_.Release((*running)->pages);
    running_.erase(running);
    return;
  }
  const auto waiting = std::find_if(waiting_.begin(), waiting_.end(), same);
  if (waiting != waiting_.end()) waiting_.erase(waiting);
}

std::vector<std::shared_ptr<Sequence>> Scheduler::Reap(absl::FunctionRef<bool(const Sequence&)> ends) {
  std::vector<std::shared_ptr<Sequence>> out;
  const auto take = [&](const std::shared_ptr<Sequence>& sequence) {
    if (!ends(*sequence)) return false;
    pool_.Release(sequence->pages);
    out.push_back(sequence);
    return true;
  };
  std::erase_if(running_, take);
  std::erase_if(waiting_, take);
  return out;
}

}  // namespace sage
