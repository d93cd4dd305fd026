// Scoring in chunks; sums run in the order of positions, so the figure does not depend on chunks or threads.
#include "engine/runtime/score.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/runtime/logprobs.h"

namespace sage {
namespace {

constexpr int64_t kScoredRows = 64;
constexpr int64_t kMaxResultEntries = int64_t{1} << 22;  // ids in `positions` with their alternatives

absl::Status InvalidScore(std::string_view reason, const std::string& message) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason, absl::StrCat("score: ", message));
}

int64_t EffectiveWindow(const ScoreSpec& spec) { return std::min(spec.window, static_cast<int64_t>(spec.ids.size())); }

}  // namespace

int64_t ScoreRun::WindowCount(const ScoreSpec& spec) {
  const int64_t ids = static_cast<int64_t>(spec.ids.size());
  int64_t windows = ids / spec.window + (ids % spec.window >= 2 ? 1 : 0);
  return spec.max_windows > 0 ? std::min(windows, spec.max_windows) : windows;
}

absl::Status CheckScore(const ScoreSpec& spec, int64_t V, int64_t max_model_len) {
  const int64_t ids = static_cast<int64_t>(spec.ids.size());
  if (ids < 2) return InvalidScore("TOO_FEW_IDS", absl::StrCat("needs at least 2 ids, got ", ids));
  if (spec.window < 2)
    return InvalidScore("INVALID_WINDOW", absl::StrCat("window must be at least 2, got ", spec.window));
  if (EffectiveWindow(spec) > max_model_len) {
    return InvalidScore("WINDOW_TOO_LARGE", absl::StrCat("window must be at most the engine's context of ",
                                                         max_model_len, " positions, got ", EffectiveWindow(spec)));
  }
  if (spec.max_windows < 0) {
    return InvalidScore("INVALID_WINDOWS", absl::StrCat("windows must be at least 0, got ", spec.max_windows));
  }
  if (spec.top < 0 || spec.top > 100) {
    return InvalidScore("INVALID_TOP", absl::StrCat("top must be in [0, 100], got ", spec.top));
  }
  const int64_t scored = std::min(ids, ScoreRun::WindowCount(spec) * spec.window);
  if (spec.top > 0 && scored * (spec.top + 1) > kMaxResultEntries) {
    return InvalidScore("RESULT_TOO_LARGE", absl::StrCat("positions times (top + 1) must be at most ",
                                                         kMaxResultEntries, ", got ", scored * (spec.top + 1)));
  }
  for (int64_t i = 0; i < ids; ++i) {
    const int32_t id = spec.ids[static_cast<size_t>(i)];
    if (id < 0 || id >= V) {
      return InvalidScore("ID_OUT_OF_RANGE", absl::StrCat("ids[", i, "] must be in [0, ", V, "), got ", id));
    }
  }
  return absl::OkStatus();
}

void ScoreJob::Finish(absl::StatusOr<ScoreResult> value) {
  std::lock_guard<std::mutex> lock(mutex);
  if (!result.has_value()) result = std::move(value);
  done.notify_all();
}

absl::StatusOr<std::unique_ptr<ScoreRun>> ScoreRun::Start(std::shared_ptr<ScoreJob> job, Decoder& decoder,
                                                          const MakeArena& make_arena, int page_tokens,
                                                          int64_t chunk_rows) {
  std::unique_ptr<ScoreRun> run(new ScoreRun(std::move(job), decoder));
  const int64_t window = EffectiveWindow(run->job_->spec);
  const DecoderConfig& config = decoder.config();
  run->chunk_rows_ = std::min(chunk_rows, window);
  run->windows_ = WindowCount(run->job_->spec);
  const int64_t pages = (window + page_tokens - 1) / page_tokens;
  SAGE_ASSIGN_OR_RETURN(run->kv_, make_arena(pages));
  run->pages_.resize(static_cast<size_t>(KvPageEntries(pages, run->kv_->layout().sink_pages)));
  std::iota(run->pages_.begin(), run->pages_.end(), 0);
  SAGE_ASSIGN_OR_RETURN(run->hidden_, Tensor::Allocate(DType::kF32, {run->chunk_rows_, config.hidden}));
  SAGE_ASSIGN_OR_RETURN(run->logits_,
                        Tensor::Allocate(DType::kF32, {std::min(run->chunk_rows_, kScoredRows), config.V}));
  run->rows_.resize(static_cast<size_t>(std::min(run->chunk_rows_, kScoredRows)));
  run->errors_.resize(run->rows_.size());
  return run;
}

// Rows [first_id, first_id + rows) of the ids have their hidden states in hidden_; each predicts the id after it.
absl::Status ScoreRun::ScoreRows(StepContext& ctx, int64_t first_id, int64_t rows) {
  const ScoreSpec& spec = job_->spec;
  const int64_t hidden = decoder_.config().hidden, V = decoder_.config().V;
  for (int64_t begin = 0; begin < rows; begin += kScoredRows) {
    const int64_t count = std::min(kScoredRows, rows - begin);
    SAGE_RETURN_IF_ERROR(decoder_.Logits(ctx, hidden_.as<float>() + begin * hidden, count, logits_.as<float>()));
    ctx.threads->Run(count, [&](int64_t row, int) {
      const auto r = static_cast<size_t>(row);
      const auto logits = absl::MakeConstSpan(logits_.as<float>() + row * V, static_cast<size_t>(V));
      ScorePosition& position = rows_[r];
      const absl::StatusOr<double> normalizer = LogNormalizer(logits);
      errors_[r] = normalizer.status();
      if (!normalizer.ok()) return;
      position.id = spec.ids[static_cast<size_t>(first_id + begin + row + 1)];
      position.logprob = static_cast<double>(logits[static_cast<size_t>(position.id)]) - *normalizer;
      position.top.clear();
      if (spec.top <= 0) return;
      position.rank = RankOf(logits, position.id);
      for (const auto& [id, logit] : TopLogits(logits, spec.top)) {
        position.top.push_back({id, std::string(), static_cast<double>(logit) - *normalizer});
      }
    });
    for (size_t r = 0; r < static_cast<size_t>(count); ++r) {
      SAGE_RETURN_IF_ERROR(errors_[r]);
      result_.nll -= rows_[r].logprob;
      ++result_.scored;
      if (spec.top > 0) result_.positions.push_back(rows_[r]);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> ScoreRun::RunChunk(StepContext& ctx, int64_t max_rows) {
  if (job_->cancelled.load(std::memory_order_acquire)) return absl::CancelledError("score: cancelled by the caller");
  const ScoreSpec& spec = job_->spec;
  const int64_t ids = static_cast<int64_t>(spec.ids.size());
  const int64_t begin = window_ * spec.window;
  const int64_t length = std::min(spec.window, ids - begin);
  const int64_t rows = std::min({chunk_rows_, max_rows, length - position_});
  const bool window_ends = position_ + rows == length;
  const int64_t outputs = window_ends ? rows - 1 : rows;  // the last id of a window predicts nothing in it

  SequenceSlice slice;
  slice.rows = rows;
  slice.context = position_;
  slice.prompt_length = length;
  slice.pages = pages_.data();
  std::vector<int64_t> output_rows(static_cast<size_t>(outputs));
  std::iota(output_rows.begin(), output_rows.end(), 0);
  DecoderBatch batch;
  batch.ids = absl::MakeConstSpan(spec.ids).subspan(static_cast<size_t>(begin + position_), static_cast<size_t>(rows));
  batch.sequences = absl::MakeConstSpan(&slice, 1);
  batch.output_rows = output_rows;
  SAGE_RETURN_IF_ERROR(decoder_.Forward(ctx, batch, *kv_, hidden_.as<float>()));
  SAGE_RETURN_IF_ERROR(ScoreRows(ctx, begin + position_, outputs));

  position_ += rows;
  if (!window_ends) return false;
  position_ = 0;
  ++window_;
  job_->windows_done.store(window_, std::memory_order_relaxed);
  return window_ == windows_;
}

ScoreResult ScoreRun::TakeResult() {
  result_.window = job_->spec.window;
  result_.windows = windows_;
  result_.ppl = result_.scored > 0 ? std::exp(result_.nll / static_cast<double>(result_.scored)) : 0;
  return std::move(result_);
}

}  // namespace sage
