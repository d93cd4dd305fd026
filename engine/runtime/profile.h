// A profile of an engine by operator: a made-up prompt, then decode steps of a batch, between the steps of generation.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/engine.h"
#include "engine/decoder/decoder.h"

namespace sage {

// INVALID_ARGUMENT naming the field, rule and value.
absl::Status CheckProfile(const ProfileSpec& spec, int64_t max_model_len);

// One call of Profile(), shared by its caller and the step thread.
struct ProfileJob {
  ProfileSpec spec;
  std::atomic<bool> cancelled{false};
  std::mutex mutex;
  std::condition_variable done;
  std::optional<absl::StatusOr<EngineProfile>> result;  // guarded by mutex

  void Finish(absl::StatusOr<EngineProfile> value);
};

class ProfileRun {
 public:
  using MakeArena = std::function<absl::StatusOr<std::unique_ptr<KvArena>>(int64_t pages)>;
  static absl::StatusOr<std::unique_ptr<ProfileRun>> Start(std::shared_ptr<ProfileJob> job, Decoder& decoder,
                                                           const MakeArena& make_arena, int page_tokens,
                                                           int64_t chunk_rows);
  // One step: a chunk of the prompt or a decode step. True when the profile is complete.
  absl::StatusOr<bool> RunStep(StepContext& ctx);
  ProfileJob& job() { return *job_; }
  EngineProfile TakeResult();

 private:
  ProfileRun(std::shared_ptr<ProfileJob> job, Decoder& decoder) : job_(std::move(job)), decoder_(decoder) {}
  absl::Status Prefill(StepContext& ctx);
  absl::Status Decode(StepContext& ctx);
  void Greedy(StepContext& ctx);

  std::shared_ptr<ProfileJob> job_;
  Decoder& decoder_;
  int64_t chunk_rows_ = 0, prompt_ = 0;
  int64_t position_ = 0;  // of the sequences, all alike
  std::unique_ptr<KvArena> kv_;
  std::vector<std::vector<int32_t>> pages_;  // of each sequence; those of the prompt are shared
  std::vector<int32_t> ids_;                 // the newest of each sequence
  std::vector<float> logits_;
  StepProfile prefill_, decode_;
  EngineProfile result_;
};

}  // namespace sage
