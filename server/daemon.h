// Everything the services share: settings, engines, operations, metrics, admission. One per process (tests make their
// own with a fake runtime).
#pragma once

#include <atomic>
#include <memory>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/config.h"
#include "server/engine_table.h"
#include "server/model_paths.h"
#include "server/operations/runner.h"
#include "server/telemetry/metrics.h"
#include "server/work_queue.h"

namespace sage::server {

class Daemon {
 public:
  // `make_runtime` is Runtime::Create but for tests.
  using RuntimeMaker = std::function<std::unique_ptr<Runtime>(const RuntimeOptions&)>;
  static absl::StatusOr<std::unique_ptr<Daemon>> Create(const DaemonConfig& config, const RuntimeMaker& make_runtime);
  ~Daemon();

  // UNAVAILABLE (DRAINING, NOT_READY) unless requests are admitted.
  absl::Status Admit() const;
  // UNAUTHENTICATED (TOKEN_MISSING, TOKEN_INVALID) when tokens are configured; `authorization` is the header's value.
  absl::Status Authenticate(const std::string& authorization) const;
  // Runs blocking work; false = RESOURCE_EXHAUSTED (the caller answers). Quick: parsing, tokenizing, listing. Slow:
  // starts, scores, verifications.
  bool Quick(std::function<void()> work) { return quick_->Submit(std::move(work)); }
  bool Slow(std::function<void()> work) { return slow_->Submit(std::move(work)); }

  // Steps of stopping, in this order.
  void BeginDrain() { draining_ = true; }
  void StopWork(absl::Time deadline);  // engines and operations; blocks

  void SetReady() { ready_ = true; }
  bool ready() const { return ready_ && !draining_ && healthy_; }
  bool draining() const { return draining_; }
  // Looks at the age of the engines' last steps; false when one hangs.
  bool CheckWatchdog();

  const DaemonConfig& config() const { return config_; }
  const ModelPaths& paths() const { return paths_; }
  Runtime& runtime() { return *runtime_; }
  EngineTable& engines() { return *engines_; }
  TokenizerCache& tokenizers() { return tokenizers_; }
  OperationStore& store() { return *store_; }
  OperationRunner& operations() { return *operations_; }
  PrometheusMetrics& metrics() { return metrics_; }

 private:
  explicit Daemon(const DaemonConfig& config) : config_(config) {}
  void CollectGauges();

  DaemonConfig config_;
  PrometheusMetrics metrics_;
  ModelPaths paths_;
  std::set<std::string> token_hashes_;
  std::unique_ptr<Runtime> runtime_;
  std::unique_ptr<EngineTable> engines_;
  TokenizerCache tokenizers_;
  std::unique_ptr<OperationStore> store_;
  std::unique_ptr<OperationRunner> operations_;
  std::unique_ptr<WorkQueue> quick_, slow_;
  std::atomic<bool> ready_{false}, draining_{false}, healthy_{true};
};

}  // namespace sage::server
