// Teacher-forced scoring: windows without overlap, a bounded number of rows at a time, between the steps of generation.
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

// INVALID_ARGUMENT for ids outside the vocabulary, a window the context cannot hold, or a result without bound.
absl::Status CheckScore(const ScoreSpec& spec, int64_t V, int64_t max_model_len);

// One call of Score(), shared by its caller and the step thread.
struct ScoreJob {
  ScoreSpec spec;  // owned: a cancelled caller leaves while the step thread still reads it
  std::atomic<bool> cancelled{false};
  std::atomic<int64_t> windows_done{0};
  std::mutex mutex;
  std::condition_variable done;
  std::optional<absl::StatusOr<ScoreResult>> result;  // guarded by mutex

  void Finish(absl::StatusOr<ScoreResult> value);
};

class ScoreRun {
 public:
  // Memory for one sequence of `pages` pages of positions.
  using MakeArena = std::function<absl::StatusOr<std::unique_ptr<KvArena>>(int64_t pages)>;
  static absl::StatusOr<std::unique_ptr<ScoreRun>> Start(std::shared_ptr<ScoreJob> job, Decoder& decoder,
                                                         const MakeArena& make_arena, int page_tokens,
                                                         int64_t chunk_rows);

  // Runs at most `max_rows` (and never more than `chunk_rows`) rows. True when the job is complete.
  absl::StatusOr<bool> RunChunk(StepContext& ctx, int64_t max_rows);
  ScoreJob& job() { return *job_; }
  ScoreResult TakeResult();
  static int64_t WindowCount(const ScoreSpec& spec);

 private:
  ScoreRun(std::shared_ptr<ScoreJob> job, Decoder& decoder) : job_(std::move(job)), decoder_(decoder) {}
  absl::Status ScoreRows(StepContext& ctx, int64_t first_id, int64_t rows);

  std::shared_ptr<ScoreJob> job_;
  Decoder& decoder_;
  int64_t chunk_rows_ = 0;
  int64_t windows_ = 0;
  int64_t window_ = 0;    // the one that runs
  int64_t position_ = 0;  // positions of it that are done
  std::unique_ptr<KvArena> kv_;
  std::vector<int32_t> pages_;
  Tensor hidden_;  // [chunk_rows, hidden] f32
  Tensor logits_;  // [min(chunk_rows, 64), V] f32
  std::vector<ScorePosition> rows_;
  std::vector<absl::Status> errors_;
  ScoreResult result_;
};

}  // namespace sage
