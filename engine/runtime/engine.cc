// The engine as its callers see it: validation, submission, scoring, figures and stopping around one step thread.
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/runtime/engine_parts.h"
#include "engine/runtime/inbox.h"
#include "engine/runtime/step_loop.h"

namespace sage {
namespace {

constexpr int kMaxChoices = 128;
constexpr size_t kMaxStops = 64, kMaxStopBytes = 4096, kMaxStopIds = 4096;

absl::Status InvalidRequest(std::string_view reason, const std::string& message) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason, absl::StrCat("generate: ", message));
}

uint64_t RandomSeed() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

class Handle final : public GenerationHandle {
 public:
  explicit Handle(std::shared_ptr<GenerationRequest> request) : request_(std::move(request)) {}
  // The step thread looks at the flag before each step; while a request lives it never sleeps.
  void Cancel() override { request_->cancelled.store(true, std::memory_order_release); }

 private:
  std::shared_ptr<GenerationRequest> request_;
};

class Engine final : public InferenceEngine {
 public:
  explicit Engine(EngineParts parts) : parts_(std::move(parts)), inbox_(parts_.admission) {
    if (parts_.metrics == nullptr) parts_.metrics = &NullMetricSink();
    V_ = parts_.decoder->config().V;
    loop_ = std::make_unique<StepLoop>(parts_, inbox_);
    parts_.info.state = "RUNNING";
    thread_ = std::thread([this] { loop_->Run(); });
  }
  ~Engine() override { Stop(absl::InfinitePast()); }

  EngineInfo info() const override {
    std::lock_guard<std::mutex> lock(info_mutex_);
    EngineInfo out = parts_.info;
    if (const absl::Status files = parts_.files.Check(); !files.ok() && out.state == "RUNNING") {
      out.state = "FAILED";
      out.error = files;
    }
    return out;
  }
  EngineStats stats() const override { return loop_->Stats(); }
  const TokenizerFiles* tokenizer() const override {
    return parts_.tokenizer.has_value() ? &*parts_.tokenizer : nullptr;
  }
  absl::StatusOr<std::shared_ptr<GenerationHandle>> Submit(GenerateSpec spec, GenerationSink sink) override;
  absl::StatusOr<ScoreResult> Score(const ScoreSpec& spec, const CancelToken& cancel,
                                    const ProgressFn& progress) override;
  absl::StatusOr<EngineProfile> Profile(const ProfileSpec& spec, const CancelToken& cancel) override;
  void Stop(absl::Time deadline) override;

 private:
  absl::Status CheckGenerate(const GenerateSpec& spec) const;
  absl::Status CheckStops(const GenerateSpec& spec) const;
  void SetState(std::string state) {
    std::lock_guard<std::mutex> lock(info_mutex_);
    parts_.info.state = std::move(state);
  }

  EngineParts parts_;
  Inbox inbox_;
  std::unique_ptr<StepLoop> loop_;
  int64_t V_ = 0;
  std::atomic<int64_t> scoring_{0};
  std::mutex profiling_;  // one profile at a time: two would measure each other
  mutable std::mutex info_mutex_;
  std::mutex stop_mutex_;
  std::thread thread_;  // joinable until the engine has stopped; guarded by stop_mutex_
};

absl::Status Engine::CheckStops(const GenerateSpec& spec) const {
  if (!spec.stop.empty() && !parts_.tokenizer.has_value()) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "NO_TOKENIZER",
                     "generate: stop strings need a tokenizer, and the model has none; use stop ids");
  }
  if (spec.stop.size() > kMaxStops) {
    return InvalidRequest("TOO_MANY_STOPS",
                          absl::StrCat("at most ", kMaxStops, " stop strings, got ", spec.stop.size()));
  }
  for (const std::string& stop : spec.stop) {
    if (!stop.empty() && stop.size() <= kMaxStopBytes) continue;
    return InvalidRequest("INVALID_STOP",
                          absl::StrCat("a stop string must have 1 to ", kMaxStopBytes, " bytes, got ", stop.size()));
  }
  if (spec.stop_ids.size() > kMaxStopIds) {
    return InvalidRequest("TOO_MANY_STOPS",
                          absl::StrCat("at most ", kMaxStopIds, " stop ids, got ", spec.stop_ids.size()));
  }
  return absl::OkStatus();
}

absl::Status Engine::CheckGenerate(const GenerateSpec& spec) const {
  const int64_t length = static_cast<int64_t>(spec.prompt_ids.size());
  if (length < 1) return InvalidRequest("EMPTY_PROMPT", "the prompt must have at least one id, got 0");
  if (length >= parts_.max_model_len) {
    return MakeError(absl::StatusCode::kInvalidArgument, "PROMPT_TOO_LONG",
                     absl::StrCat("generate: prompt must be shorter than the engine's context of ",
                                  parts_.max_model_len, " ids, got ", length),
                     {{"max_model_len", absl::StrCat(parts_.max_model_len)}, {"prompt_ids", absl::StrCat(length)}});
  }
  for (int64_t i = 0; i < length; ++i) {
    const int32_t id = spec.prompt_ids[static_cast<size_t>(i)];
    if (id >= 0 && id < V_) continue;
    return InvalidRequest("ID_OUT_OF_RANGE", absl::StrCat("prompt_ids[", i, "] must be in [0, ", V_, "), got ", id));
  }
  if (spec.max_tokens < 1) {
    return InvalidRequest("INVALID_MAX_TOKENS", absl::StrCat("max_tokens must be at least 1, got ", spec.max_tokens));
  }
  if (spec.n < 1 || spec.n > kMaxChoices) {
    return InvalidRequest("INVALID_N", absl::StrCat("n must be in [1, ", kMaxChoices, "], got ", spec.n));
  }
  if (length * spec.n > parts_.admission.max_queue_tokens) {
    return InvalidRequest("PROMPT_EXCEEDS_QUEUE",
                          absl::StrCat("prompt ids times n must be at most the queue's ",
                                       parts_.admission.max_queue_tokens, ", got ", length * spec.n));
  }
  if (spec.logprobs < -1 || spec.logprobs > 20) {
    return InvalidRequest("INVALID_LOGPROBS", absl::StrCat("logprobs must be in [0, 20] or -1, got ", spec.logprobs));
  }
  SAGE_RETURN_IF_ERROR(CheckStops(spec));
  return CheckSampling(spec.sampling, V_);
}

absl::StatusOr<std::shared_ptr<GenerationHandle>> Engine::Submit(GenerateSpec spec, GenerationSink sink) {
  SAGE_RETURN_IF_ERROR(CheckGenerate(spec));
  SAGE_RETURN_IF_ERROR(parts_.files.Check());
  auto request = std::make_shared<GenerationRequest>();
  request->seed = spec.sampling.seed.has_value() ? *spec.sampling.seed : RandomSeed();
  request->spec = std::move(spec);
  request->sink = std::move(sink);
  request->submitted_at = absl::Now();
  SAGE_RETURN_IF_ERROR(inbox_.Push(request));
  return std::make_shared<Handle>(std::move(request));
}

absl::StatusOr<ScoreResult> Engine::Score(const ScoreSpec& asked, const CancelToken& cancel,
                                          const ProgressFn& progress) {
  ScoreSpec spec = asked;
  spec.window =
      std::min(spec.window, parts_.max_model_len);  // a window is at most the context; the result counts windows
  SAGE_RETURN_IF_ERROR(CheckScore(spec, V_, parts_.max_model_len));
  SAGE_RETURN_IF_ERROR(parts_.files.Check());
  struct Count {
    explicit Count(std::atomic<int64_t>& n) : n(n), before(n.fetch_add(1)) {}
    ~Count() { n.fetch_sub(1); }
    std::atomic<int64_t>& n;
    const int64_t before;
  } count(scoring_);
  if (count.before >= parts_.admission.max_queue_requests) {
    return MakeError(absl::StatusCode::kResourceExhausted, "QUEUE_FULL",
                     absl::StrCat("score: at most ", parts_.admission.max_queue_requests, " calls may wait, got ",
                                  count.before + 1));
  }
  auto job = std::make_shared<ScoreJob>();
  job->spec = spec;
  SAGE_RETURN_IF_ERROR(inbox_.PushScore(job));
  int64_t told = 0;
  std::unique_lock<std::mutex> lock(job->mutex);
  while (!job->result.has_value()) {
    job->done.wait_for(lock, std::chrono::milliseconds(20));
    if (cancel.cancelled()) {
      job->cancelled.store(true, std::memory_order_release);
      if (!job->result.has_value()) return absl::CancelledError("score: cancelled by the caller");
    }
    const int64_t windows = job->windows_done.load(std::memory_order_relaxed);
    if (windows == told || !progress) continue;
    told = windows;
    lock.unlock();
    progress({"score", windows, ScoreRun::WindowCount(job->spec), "windows"});
    lock.lock();
  }
  return std::move(*job->result);
}

absl::StatusOr<EngineProfile> Engine::Profile(const ProfileSpec& spec, const CancelToken& cancel) {
  SAGE_RETURN_IF_ERROR(CheckProfile(spec, parts_.max_model_len));
  SAGE_RETURN_IF_ERROR(parts_.files.Check());
  const std::unique_lock<std::mutex> alone(profiling_, std::try_to_lock);
  if (!alone.owns_lock()) {
    return MakeError(absl::StatusCode::kResourceExhausted, "PROFILE_RUNNING",
                     "profile: one runs on this engine already");
  }
  auto job = std::make_shared<ProfileJob>();
  job->spec = spec;
  SAGE_RETURN_IF_ERROR(inbox_.PushProfile(job));
  std::unique_lock<std::mutex> lock(job->mutex);
  while (!job->result.has_value()) {
    job->done.wait_for(lock, std::chrono::milliseconds(20));
    if (!cancel.cancelled() || job->result.has_value()) continue;
    job->cancelled.store(true, std::memory_order_release);
    return absl::CancelledError("profile: cancelled by the caller");
  }
  return std::move(*job->result);
}

void Engine::Stop(absl::Time deadline) {
  {
    std::lock_guard<std::mutex> lock(info_mutex_);
    if (parts_.info.state == "RUNNING") parts_.info.state = "STOPPING";
  }
  inbox_.Drain(deadline);
  std::lock_guard<std::mutex> lock(stop_mutex_);
  if (!thread_.joinable()) return;
  thread_.join();
  // Listings and stats outlive the engine's memory.
  parts_.make_arena = nullptr;
  parts_.kv.reset();
  parts_.decoder.reset();
  parts_.threads.reset();
  parts_.backend.reset();
  SetState("STOPPED");
}

}  // namespace

std::shared_ptr<InferenceEngine> MakeEngine(EngineParts parts) { return std::make_shared<Engine>(std::move(parts)); }

}  // namespace sage
