// A runtime whose engine answers token ids 100, 101, ... at a chosen pace: what the server's tests drive.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "engine/api/engine.h"
#include "engine/base/status.h"

namespace sage::server {

class FakeHandle final : public GenerationHandle {
 public:
  void Cancel() override { cancelled = true; }
  std::atomic<bool> cancelled{false};
};

class FakeEngine final : public InferenceEngine {
 public:
  explicit FakeEngine(EngineSpec spec) : spec_(std::move(spec)) {}
  ~FakeEngine() override { Stop(absl::Now()); }
  EngineInfo info() const override {
    EngineInfo info;
    info.engine_id = spec_.engine_id;
    info.state = "RUNNING";
    info.backend = "cpu";
    info.quantization = spec_.quantization;
    info.bindings.push_back({"layer", "strategy", "kernel", 7});
    return info;
  }
  EngineStats stats() const override {
    EngineStats stats;
    stats.running = running;
    stats.kv_pages_total = 10;
    return stats;
  }
  const TokenizerFiles* tokenizer() const override { return nullptr; }
  absl::StatusOr<EngineProfile> Profile(const ProfileSpec& spec, const CancelToken&) override {
    EngineProfile out;
    out.threads = 2;
    out.read_bytes_per_second = 1e9;
    out.decode = {spec.steps, spec.steps * spec.batch, 0.5, {{"attention", spec.steps, 0.25, 1000}}};
    return out;
  }
  absl::StatusOr<std::shared_ptr<GenerationHandle>> Submit(GenerateSpec spec, GenerationSink sink) override {
    if (stopping_) return MakeError(absl::StatusCode::kUnavailable, "ENGINE_DRAINING", "stopping");
    if (spec.prompt_ids[0] == 999) return MakeError(absl::StatusCode::kResourceExhausted, "QUEUE_FULL", "full");
    auto handle = std::make_shared<FakeHandle>();
    ++running;
    std::lock_guard lock(mutex_);
    threads_.emplace_back([this, handle, spec = std::move(spec), sink = std::move(sink)] {
      GenerationEvent event;
      absl::Status status;
      for (int64_t i = 0; i < spec.max_tokens && status.ok(); ++i) {
        absl::SleepFor(absl::Microseconds(step_us.load()));
        if (handle->cancelled || cut_) status = absl::CancelledError("cancelled");
        if (absl::Now() > spec.deadline) {
          status = MakeError(absl::StatusCode::kDeadlineExceeded, "DEADLINE_EXCEEDED", "too late");
        }
        if (!status.ok()) break;
        event = GenerationEvent();
        event.tokens.push_back({static_cast<int32_t>(100 + i), 0, {}});
        event.text = text_bytes == 0 ? "t" : std::string(static_cast<size_t>(text_bytes.load()), 't');
        if (i + 1 == spec.max_tokens) event.finish_reason = "length";
        event.last = !event.finish_reason.empty();
        event.usage = {static_cast<int64_t>(spec.prompt_ids.size()), i + 1, 0};
        if (event.last) --running;
        sink(event);
      }
      if (event.last) return;
      event = GenerationEvent();
      event.last = true;
      event.status = status;
      event.finish_reason = "cancelled";
      --running;
      ++cancelled;
      sink(event);
    });
    return std::shared_ptr<GenerationHandle>(handle);
  }
  absl::StatusOr<ScoreResult> Score(const ScoreSpec& spec, const CancelToken& cancel, const ProgressFn&) override {
    while (spec.ids.size() == 3) {  // hangs until cancelled
      if (cancel.cancelled()) return cancel.Check();
      absl::SleepFor(absl::Milliseconds(1));
    }
    ScoreResult result;
    result.scored = static_cast<int64_t>(spec.ids.size()) - 1;
    return result;
  }
  void Stop(absl::Time deadline) override {
    stopping_ = true;
    while (running > 0 && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(1));
    cut_ = true;
    std::vector<std::thread> threads;
    {
      std::lock_guard lock(mutex_);
      threads.swap(threads_);
    }
    for (std::thread& thread : threads) thread.join();
  }

  static inline std::atomic<int> step_us{200}, text_bytes{0};
  std::atomic<int> running{0}, cancelled{0};

 private:
  const EngineSpec spec_;
  std::atomic<bool> stopping_{false}, cut_{false};
  std::mutex mutex_;
  std::vector<std::thread> threads_;
};

class FakeRuntime final : public Runtime {
 public:
  int threads() const override { return 1; }
  absl::StatusOr<std::shared_ptr<InferenceEngine>> StartEngine(const EngineSpec& spec, const CancelToken& cancel,
                                                               const ProgressFn& progress) override {
    ++starts;
    progress({"load", 1, 2, "bytes"});
    while (spec.quantization == "slow") {
      if (cancel.cancelled()) return cancel.Check();
      absl::SleepFor(absl::Milliseconds(1));
    }
    if (spec.quantization == "huge")
      return MakeError(absl::StatusCode::kResourceExhausted, "INSUFFICIENT_MEMORY", "no");
    if (spec.quantization == "bad")
      return MakeError(absl::StatusCode::kInvalidArgument, "UNKNOWN_LINEAR_STRATEGY", "no");
    auto engine = std::make_shared<FakeEngine>(spec);
    last = engine;
    return std::shared_ptr<InferenceEngine>(engine);
  }
  absl::StatusOr<CalibrationResult> Calibrate(const CalibrationSpec& spec, const CancelToken& cancel,
                                              const ProgressFn& progress) override {
    for (int i = 0; i < 20; ++i) {
      if (cancel.cancelled()) return cancel.Check();
      progress({"layer", i, 20, "layers"});
      absl::SleepFor(absl::Milliseconds(spec.samples == 7 ? 50 : 1));
    }
    CalibrationResult result;
    result.path = spec.output;
    result.quantization = "int4_w4a16";
    result.layers.push_back({"l", "s", 0.5, "", 1});
    return result;
  }
  absl::StatusOr<ConvertResult> Convert(const ConvertSpec&, const CancelToken&, const ProgressFn&) override {
    return ConvertResult{true, 3, 0, ""};
  }
  absl::StatusOr<Json> Report(const ReportSpec&, const CancelToken&, const ProgressFn&) override {
    return Json{{"top1_agreement", 1.0}};
  }
  absl::StatusOr<int64_t> VerifyArtifact(const std::string&, const CancelToken&) override { return 5; }

  static inline std::atomic<int> starts{0};
  static inline std::weak_ptr<FakeEngine> last;
};

}  // namespace sage::server
