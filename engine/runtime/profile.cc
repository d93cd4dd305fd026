// Steps with a clock in every operator. The probe reads a buffer far larger than the caches with all threads.
#include "engine/runtime/profile.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

constexpr int64_t kProbeBytes = int64_t{192} << 20;
constexpr int kProbeRounds = 4;

absl::Status CheckRange(std::string_view field, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return MakeError(absl::StatusCode::kInvalidArgument, "OUT_OF_RANGE",
                   absl::StrCat("profile: ", std::string(field), " must be in [", least, ", ", most, "], got ", value));
}

double Seconds(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// The best of a few rounds: others use the memory too.
absl::StatusOr<double> ReadBandwidth(ThreadPool& threads) {
  SAGE_ASSIGN_OR_RETURN(Tensor buffer, Tensor::Allocate(DType::kU8, {kProbeBytes}));
  const int64_t parts = int64_t{16} * threads.size(), words = kProbeBytes / 8 / parts;
  uint64_t* data = buffer.as<uint64_t>();
  std::vector<uint64_t> sums(static_cast<size_t>(parts));
  double best = 0;
  threads.Run(parts, [&](int64_t part, int) { std::fill_n(data + part * words, words, part + 1); });
  for (int round = 0; round < kProbeRounds; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    threads.Run(parts, [&](int64_t part, int) {
      uint64_t lanes[16] = {};
      const uint64_t* from = data + part * words;
      for (int64_t i = 0; i + 16 <= words; i += 16) {
        for (int lane = 0; lane < 16; ++lane) lanes[lane] ^= from[i + lane];
      }
      sums[static_cast<size_t>(part)] = std::accumulate(lanes, lanes + 16, uint64_t{0});
    });
    best = std::max(best, static_cast<double>(parts * words * 8) / Seconds(begin));
  }
  const uint64_t sum = std::accumulate(sums.begin(), sums.end(), uint64_t{0});
  return sum == 1 ? 0 : best;  // the sum is used, so the reads are made
}

ProfiledPhase Phase(const StepProfile& profile, ProfiledPhase phase) {
  for (const StepProfile::Operator& op : profile.operators()) {
    phase.operators.push_back({op.name, op.calls, static_cast<double>(op.ns) * 1e-9, op.bytes});
  }
  return phase;
}

}  // namespace

absl::Status CheckProfile(const ProfileSpec& spec, int64_t max_model_len) {
  SAGE_RETURN_IF_ERROR(CheckRange("prompt", spec.prompt, 1, 1 << 20));
  SAGE_RETURN_IF_ERROR(CheckRange("batch", spec.batch, 1, 64));
  SAGE_RETURN_IF_ERROR(CheckRange("steps", spec.steps, 1, 1024));
  if (spec.prompt + spec.steps <= max_model_len) return absl::OkStatus();
  return MakeError(absl::StatusCode::kInvalidArgument, "CONTEXT_TOO_LONG",
                   absl::StrCat("profile: prompt and steps must be at most the engine's context of ", max_model_len,
                                " positions, got ", spec.prompt + spec.steps));
}

void ProfileJob::Finish(absl::StatusOr<EngineProfile> value) {
  std::lock_guard<std::mutex> lock(mutex);
  if (!result.has_value()) result = std::move(value);
  done.notify_all();
}

absl::StatusOr<std::unique_ptr<ProfileRun>> ProfileRun::Start(std::shared_ptr<ProfileJob> job, Decoder& decoder,
                                                              const MakeArena& make_arena, int page_tokens,
                                                              int64_t chunk_rows) {
  std::unique_ptr<ProfileRun> run(new ProfileRun(std::move(job), decoder));
  const ProfileSpec& spec = run->job_->spec;
  const DecoderConfig& config = decoder.config();
  run->chunk_rows_ = chunk_rows;
  const int64_t shared = (spec.prompt + page_tokens - 1) / page_tokens;
  const int64_t own = (spec.steps + page_tokens - 1) / page_tokens;
  run->prompt_ = shared * page_tokens;
  // Twice as many as without sink pages are enough; those not touched cost no memory.
  SAGE_ASSIGN_OR_RETURN(run->kv_, make_arena(2 * (shared + own * spec.batch)));
  const int sinks = run->kv_->layout().sink_pages;
  const int64_t common = KvPageEntries(shared, sinks), all = KvPageEntries(shared + own, sinks);
  auto next = static_cast<int32_t>(common);
  for (int64_t b = 0; b < spec.batch; ++b) {
    std::vector<int32_t> table(static_cast<size_t>(common));
    std::iota(table.begin(), table.end(), 0);
    for (int64_t i = common; i < all; ++i) table.push_back(next++);
    run->pages_.push_back(std::move(table));
    run->ids_.push_back(static_cast<int32_t>((b * 7919 + 13) % config.V));
  }
  run->logits_.resize(static_cast<size_t>(spec.batch * config.V));
  return run;
}

absl::Status ProfileRun::Prefill(StepContext& ctx) {
  const auto begin = std::chrono::steady_clock::now();
  const int64_t rows = std::min(chunk_rows_, prompt_ - position_);
  std::vector<int32_t> ids(static_cast<size_t>(rows));
  for (int64_t r = 0; r < rows; ++r) {
    ids[static_cast<size_t>(r)] = static_cast<int32_t>(((position_ + r) * 31 + 17) % decoder_.config().V);
  }
  SequenceSlice slice;
  slice.rows = rows;
  slice.context = position_;
  slice.prompt_length = prompt_;
  slice.pages = pages_[0].data();
  ctx.profile = &prefill_;
  SAGE_RETURN_IF_ERROR(decoder_.Forward(ctx, {ids, absl::MakeConstSpan(&slice, 1), {}}, *kv_, nullptr));
  position_ += rows;
  ++result_.prefill.steps;
  result_.prefill.tokens += rows;
  result_.prefill.seconds += Seconds(begin);
  return absl::OkStatus();
}

void ProfileRun::Greedy(StepContext& ctx) {
  const int64_t V = decoder_.config().V;
  ctx.threads->Run(static_cast<int64_t>(ids_.size()), [&](int64_t row, int) {
    const float* logits = logits_.data() + row * V;
    ids_[static_cast<size_t>(row)] = static_cast<int32_t>(std::max_element(logits, logits + V) - logits);
  });
}

absl::Status ProfileRun::Decode(StepContext& ctx) {
  const auto begin = std::chrono::steady_clock::now();
  const auto batch = static_cast<int64_t>(ids_.size());
  std::vector<SequenceSlice> slices(static_cast<size_t>(batch));
  std::vector<int64_t> rows(static_cast<size_t>(batch));
  for (int64_t b = 0; b < batch; ++b) {
    SequenceSlice& slice = slices[static_cast<size_t>(b)];
    slice.row_begin = b;
    slice.rows = 1;
    slice.context = position_;
    slice.prompt_length = prompt_;
    slice.pages = pages_[static_cast<size_t>(b)].data();
    rows[static_cast<size_t>(b)] = b;
  }
  ctx.profile = &decode_;
  SAGE_RETURN_IF_ERROR(decoder_.Forward(ctx, {ids_, slices, rows}, *kv_, nullptr));
  SAGE_RETURN_IF_ERROR(decoder_.StepLogits(ctx, 0, batch, logits_.data()));
  Timed(ctx, "argmax", 0, [&] { Greedy(ctx); });
  ++position_;
  ++result_.decode.steps;
  result_.decode.tokens += batch;
  result_.decode.seconds += Seconds(begin);
  return absl::OkStatus();
}

absl::StatusOr<bool> ProfileRun::RunStep(StepContext& ctx) {
  if (job_->cancelled.load(std::memory_order_acquire)) return absl::CancelledError("profile: cancelled by the caller");
  if (result_.prefill.tokens < prompt_) {
    SAGE_RETURN_IF_ERROR(Prefill(ctx));
    return false;
  }
  if (result_.read_bytes_per_second == 0) {
    result_.threads = ctx.threads->size();
    SAGE_ASSIGN_OR_RETURN(result_.read_bytes_per_second, ReadBandwidth(*ctx.threads));
  }
  SAGE_RETURN_IF_ERROR(Decode(ctx));
  return result_.decode.steps == job_->spec.steps;
}

EngineProfile ProfileRun::TakeResult() {
  result_.prefill = Phase(prefill_, std::move(result_.prefill));
  result_.decode = Phase(decode_, std::move(result_.decode));
  return std::move(result_);
}

}  // namespace sage
