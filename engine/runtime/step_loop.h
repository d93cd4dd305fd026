// The step thread of an engine: schedule, forward, sample, emit; scoring chunks run between the steps.
//
// Sequences, pages and the decoder belong to this thread alone. Other threads hand work in through the Inbox, set a
// request's cancel flag, or read the atomic figures of Stats().
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <vector>

#include "engine/runtime/engine_metrics.h"
#include "engine/runtime/engine_parts.h"
#include "engine/runtime/inbox.h"
#include "engine/runtime/profile.h"
#include "engine/runtime/sampler.h"
#include "engine/runtime/scheduler.h"
#include "engine/runtime/score.h"

namespace sage {

class StepLoop {
 public:
  StepLoop(EngineParts& parts, Inbox& inbox);

  // The body of the step thread; returns when the inbox stops.
  void Run();
  EngineStats Stats() const;

 private:
  struct Sampled {
    absl::Status status;
    TokenRecord token;
  };

  void Accept(Inbox::Work work);
  void Step();
  void SetPrefixRoot(Sequence& sequence) const;
  void EndRequests();  // those that were cancelled, ran out of time or failed
  absl::Status Forward(const StepPlan& plan);
  absl::Status Sample();  // logits of the output rows and one id each
  void Emit(const StepPlan& plan);

  void NoteAdmitted(const StepPlan& plan, absl::Time now);
  // An id behind the first `drafts` guesses of the sequence.
  void SampleRow(const Sequence& sequence, int64_t drafts, const float* logits, Sampler& sampler, Sampled* out) const;
  // Takes the ids that a sequence's rows gave, up to the first that was guessed wrong. Returns how many.
  int64_t Take(const ScheduledRows& slice, absl::Span<const Sampled> sampled, absl::Time now);
  void Advance(const std::shared_ptr<Sequence>& sequence, const Sampled& sampled, absl::Time now);
  // Text of the newest id; sets finish reason and match when a stop string completes.
  void AppendText(Sequence& sequence, GenerationEvent& event) const;
  // What was held back, at the end of a choice.
  void FlushText(Sequence& sequence, GenerationEvent& event) const;
  void FinishChoice(Sequence& sequence, GenerationEvent& event, absl::Time now);
  std::string TokenText(int32_t id) const;
  void ScoreStep();
  void ProfileStep();
  void Publish(double step_seconds, const StepPlan& plan);
  StepContext NewContext();

  EngineParts& parts_;
  Inbox& inbox_;
  KvPool pool_;
  Scheduler scheduler_;
  EngineMetrics metrics_;
  ActivationCache activations_;
  int64_t hits_seen_ = 0, misses_seen_ = 0;

  // Buffers of a step, kept between steps.
  std::vector<int32_t> ids_;
  std::vector<SequenceSlice> slices_;
  std::vector<int64_t> output_rows_;
  std::vector<std::pair<Sequence*, int64_t>> outputs_;  // sequence and how many drafts stand before the row
  std::vector<Sampled> sampled_;
  std::vector<float> logits_;
  std::vector<Sampler> samplers_;

  std::deque<std::shared_ptr<ScoreJob>> score_jobs_;
  std::unique_ptr<ScoreRun> score_run_;
  std::deque<std::shared_ptr<ProfileJob>> profile_jobs_;
  std::unique_ptr<ProfileRun> profile_run_;

  std::atomic<int64_t> running_{0}, prompt_tokens_{0}, generated_tokens_{0}, steps_{0}, hits_{0}, misses_{0};
  std::atomic<bool> busy_{false};
  std::atomic<int64_t> progress_ns_{0};  // when the last step ended or work began, monotonic
};

}  // namespace sage
