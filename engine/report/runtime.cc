// The runtime: starts engines, and runs the long operations on threads of low priority so that no request waits on
// them.
#include <sys/resource.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "absl/functional/function_ref.h"
#include "engine/api/engine.h"
#include "engine/runtime/operations.h"
#include "engine/runtime/start_engine.h"

namespace sage {
namespace {

constexpr int kOperationNice = 10;

class LocalRuntime final : public Runtime {
 public:
  explicit LocalRuntime(const RuntimeOptions& options)
      : threads_(options.threads > 0 ? options.threads
                                     : std::max(1, static_cast<int>(std::thread::hardware_concurrency()))),
        metrics_(options.metrics) {}

  int threads() const override { return threads_; }

  absl::StatusOr<std::shared_ptr<InferenceEngine>> StartEngine(const EngineSpec& spec, const CancelToken& cancel,
                                                               const ProgressFn& progress) override {
    return StartLlmEngine(spec, threads_, metrics_, cancel, progress);
  }
  absl::StatusOr<CalibrationResult> Calibrate(const CalibrationSpec& spec, const CancelToken& cancel,
                                              const ProgressFn& progress) override {
    return InBackground<absl::StatusOr<CalibrationResult>>(
        [&](ThreadPool& pool) { return CalibrateModel(spec, pool, cancel, progress); });
  }
  absl::StatusOr<ConvertResult> Convert(const ConvertSpec& spec, const CancelToken& cancel,
                                        const ProgressFn& progress) override {
    return InBackground<absl::StatusOr<ConvertResult>>(
        [&](ThreadPool& pool) { return ConvertArtifact(spec, pool, cancel, progress); });
  }
  absl::StatusOr<Json> Report(const ReportSpec& spec, const CancelToken& cancel, const ProgressFn& progress) override {
    return InBackground<absl::StatusOr<Json>>(
        [&](ThreadPool& pool) { return BuildReport(spec, pool, cancel, progress); });
  }
  absl::StatusOr<int64_t> VerifyArtifact(const std::string& path, const CancelToken& cancel) override {
    return InBackground<absl::StatusOr<int64_t>>([&](ThreadPool&) { return VerifyArtifactFolder(path, cancel); });
  }

 private:
  // Runs `body` on a thread of low priority and waits. On Linux a new thread inherits its creator's niceness, so the
  // pool's workers are made there too; operations share them and take turns.
  template <typename Result>
  Result InBackground(absl::FunctionRef<Result(ThreadPool&)> body) {
    std::optional<Result> result;
    std::thread worker([&] {
      setpriority(PRIO_PROCESS, 0, kOperationNice);  // of this thread only; a refusal changes speed, not results
      result.emplace(body(OperationThreads()));
    });
    worker.join();
    return std::move(*result);
  }
  ThreadPool& OperationThreads() {
    std::call_once(pool_made_, [this] { pool_ = std::make_unique<ThreadPool>(threads_); });
    return *pool_;
  }

  const int threads_;
  MetricSink* const metrics_;
  std::once_flag pool_made_;
  std::unique_ptr<ThreadPool> pool_;
};

}  // namespace

std::unique_ptr<Runtime> Runtime::Create(const RuntimeOptions& options) {
  return std::make_unique<LocalRuntime>(options);
}

}  // namespace sage
