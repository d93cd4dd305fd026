// Everything the services share: settings, engines, operations, metrics, admission. One per process (tests make their
// own with a fake runtime).
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/config.h"
#include "server/data_dir_lock.h"
#include "server/engine_table.h"
#include "server/heap_upkeep.h"
#include "server/host_limits.h"
#include "server/model_paths.h"
#include "server/operations/runner.h"
#include "server/security/certificates.h"
#include "server/security/tokens.h"
#include "server/telemetry/audit.h"
#include "server/telemetry/metrics.h"
#include "server/telemetry/trace.h"
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
  // Adds `status` to sage_rejections_total where it is a refusal. Calls do so at their end; what refuses without a
  // call, or within one that goes on, does it itself.
  void CountRefusal(const absl::Status& status);
  // Who may call what, by the value of the authorization header.
  const Door& door() const { return door_; }
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
  bool healthy() const { return healthy_; }
  // About once a second, from one thread: tokens and certificates whose files changed, figures of the disk, what nobody
  // used for a while, freed memory.
  void Upkeep();

  const DaemonConfig& config() const { return config_; }
  const ModelPaths& paths() const { return paths_; }
  Runtime& runtime() { return *runtime_; }
  EngineTable& engines() { return *engines_; }
  TokenizerCache& tokenizers() { return tokenizers_; }
  OperationStore& store() { return *store_; }
  OperationRunner& operations() { return *operations_; }
  PrometheusMetrics& metrics() { return metrics_; }
  const HostLimits& limits() const { return limits_; }
  const Certificates& certificates() const { return certificates_; }
  AuditLog& audit() { return audit_; }
  SpanSink* spans() { return spans_.get(); }  // null = nobody wants spans

 private:
  explicit Daemon(const DaemonConfig& config) : config_(config), audit_(config.audit_log) {}
  void CollectGauges();
  void CollectProcess();
  void BeginCounters();
  void ForgetOthers(std::set<std::string> engines);  // gauges of engines that are no longer there

  DaemonConfig config_;
  PrometheusMetrics metrics_;
  ModelPaths paths_;
  std::unique_ptr<DataDirLock> data_dir_lock_;
  HeapUpkeep heap_;
  HostLimits limits_;
  Door door_;
  Certificates certificates_;
  AuditLog audit_;
  std::unique_ptr<SpanSink> spans_;
  std::unique_ptr<Runtime> runtime_;
  std::unique_ptr<EngineTable> engines_;
  TokenizerCache tokenizers_;
  std::unique_ptr<OperationStore> store_;
  std::unique_ptr<OperationRunner> operations_;
  std::unique_ptr<WorkQueue> quick_, slow_;
  std::atomic<bool> ready_{false}, draining_{false}, healthy_{true};
  std::mutex exported_mutex_;
  std::set<std::string> exported_;                                  // engines with gauges
  std::atomic<double> disk_free_bytes_{-1}, disk_total_bytes_{-1};  // of the data folder's file system
};

}  // namespace sage::server
