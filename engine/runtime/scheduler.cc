// The scheduling rules: fairness is the order of arrival, memory is taken from the youngest.
#include "engine/runtime/scheduler.h"

#include <algorithm>

#include "engine/runtime/draft.h"

namespace sage {

void Scheduler::Place(const std::shared_ptr<Sequence>& sequence, int64_t rows, StepPlan& plan) {
  plan.slices.push_back({sequence, rows, sequence->computed + rows == sequence->length()});
  plan.rows += rows;
}

void Scheduler::PlaceDecode(const std::shared_ptr<Sequence>& sequence, StepPlan& plan) {
  const int64_t rows = 1 + static_cast<int64_t>(sequence->draft.size());
  plan.slices.push_back({sequence, rows, true});
  plan.rows += rows;
}

void Scheduler::Draft(Sequence& sequence, int64_t rows) {
  sequence.draft.clear();
  const int64_t wanted = sequence.draft_length == 0 ? kFirstDraftLength : sequence.draft_length;
  const int64_t output_left = sequence.request->spec.max_tokens - sequence.output_length() - 1;
  const int64_t count = std::min(
      {wanted, rows, kMaxDraftedRows / running() - 1, output_left, limits_.max_model_len - sequence.length() - 1});
  sequence.draft = DraftFromNgrams(sequence.ids, count);
  const auto drafted = static_cast<int64_t>(sequence.draft.size());
  if (drafted > 0 && !pool_.Grow(sequence.pages, sequence.length() + drafted)) sequence.draft.clear();
}

void Scheduler::PreemptYoungest(StepPlan& plan) {
  std::shared_ptr<Sequence> victim = running_.back();
  running_.pop_back();
  pool_.Release(victim->pages);
  victim->computed = 0;
  victim->draft.clear();
  victim->prefix = {victim->prefix_root, 0};
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

bool Scheduler::WaitsForSibling(const Sequence& sequence) const {
  if (sequence.choice == 0) return false;
  const int64_t shared = (sequence.prompt_length - 1) / pool_.page_tokens() * pool_.page_tokens();
  return std::any_of(running_.begin(), running_.end(), [&](const std::shared_ptr<Sequence>& s) {
    return s->request == sequence.request && s->computed < shared;
  });
}

bool Scheduler::TakePages(Sequence& sequence) {
  const int64_t shared = std::min(sequence.length(), sequence.prefix_positions);
  sequence.computed = pool_.Attach(absl::MakeConstSpan(sequence.ids).first(static_cast<size_t>(shared)), sequence.pages,
                                   sequence.prefix);
  // A page for each running sequence stays free, so that the newcomer is not preempted at the next page boundary.
  const int64_t missing = pool_.PagesFor(sequence.length()) - static_cast<int64_t>(sequence.pages.size());
  const int64_t spare = running_.empty() ? 0 : running();
  if (missing + spare <= pool_.free() && pool_.Grow(sequence.pages, sequence.length())) return true;
  pool_.Release(sequence.pages);
  sequence.computed = 0;
  sequence.prefix = {sequence.prefix_root, 0};
  return false;
}

void Scheduler::Admit(int64_t budget, StepPlan& plan) {
  while (plan.rows < budget && running() < limits_.max_seqs && !waiting_.empty()) {
    if (pool_.keeps_prefixes() && WaitsForSibling(*waiting_.front())) return;
    if (!TakePages(*waiting_.front())) return;
    running_.push_back(waiting_.front());
    waiting_.pop_front();
    const std::shared_ptr<Sequence>& sequence = running_.back();
    if (!sequence->ever_ran) {
      sequence->ever_ran = true;
      plan.admitted.push_back(sequence);
    }
    Place(sequence, std::min(sequence->length() - sequence->computed, budget - plan.rows), plan);
  }
}

StepPlan Scheduler::Schedule() {
  StepPlan plan;
  // Preemption shortens running_ from its end while it is walked.
  for (size_t i = 0; i < running_.size() && plan.rows < limits_.max_step_tokens; ++i) {
    const std::shared_ptr<Sequence> sequence = running_[i];
    if (sequence->length() - sequence->computed != 1) continue;
    if (!MakeRoom(sequence, sequence->length(), plan)) continue;
    if (limits_.drafts) Draft(*sequence, limits_.max_step_tokens - plan.rows - 1);
    PlaceDecode(sequence, plan);
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
