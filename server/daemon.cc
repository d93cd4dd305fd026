// Puts the shared parts together, and takes them down in order.
#include "server/daemon.h"

#include <sys/statvfs.h>

#include <algorithm>

#include "absl/time/clock.h"
#include "engine/base/read_roots.h"
#include "engine/base/status.h"
#include "server/convert_status.h"
#include "server/operations/kinds.h"
#include "server/refusals.h"
#include "server/telemetry/log.h"
#include "server/telemetry/otlp.h"

namespace sage::server {
namespace {

constexpr int kQuickThreads = 4, kSlowThreads = 16;
constexpr size_t kMaxQuick = 4096, kMaxSlow = 256;

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Create(const DaemonConfig& config, const RuntimeMaker& make_runtime) {
  std::unique_ptr<Daemon> daemon(new Daemon(config));
  SAGE_ASSIGN_OR_RETURN(daemon->paths_, ModelPaths::Create(config.data_dir, config.model_roots));
  SAGE_ASSIGN_OR_RETURN(daemon->data_dir_lock_, DataDirLock::Take(daemon->paths_.data_dir()));
  ConfineReads(daemon->paths_.roots());
  ConfineReads({daemon->paths_.data_dir()});
  SAGE_RETURN_IF_ERROR(daemon->door_.Open(config.token_file));
  if (!config.tls_cert.empty()) {
    SAGE_RETURN_IF_ERROR(daemon->certificates_.Open(config.tls_cert, config.tls_key, config.tls_client_ca));
    if (const absl::Status valid = daemon->certificates_.CheckValidity(absl::Now()); !valid.ok()) {
      Log(LogLevel::kWarn, "certificate_invalid",
          {{"reason", ReasonOf(valid)}, {"message", std::string(valid.message())}});
    }
  }
  if (!config.otlp_endpoint.empty()) {
    SAGE_ASSIGN_OR_RETURN(daemon->spans_, OtlpExporter::Create(config.otlp_endpoint, daemon->metrics_));
  }
  daemon->limits_ = ReadHostLimits();
  Log(LogLevel::kInfo, "host", ToJson(daemon->limits_));
  RuntimeOptions options;
  options.threads = config.threads > 0 ? config.threads : daemon->limits_.threads;
  options.metrics = &daemon->metrics_;
  daemon->runtime_ = make_runtime(options);
  daemon->engines_ = std::make_unique<EngineTable>(*daemon->runtime_);
  SAGE_ASSIGN_OR_RETURN(daemon->store_, OperationStore::Open(daemon->paths_.data_dir() + "/operations.db"));
  daemon->operations_ = std::make_unique<OperationRunner>(*daemon->store_, daemon->metrics_, OperationKinds(*daemon),
                                                          config.operation_workers);
  daemon->quick_ = std::make_unique<WorkQueue>("sage-quick", kQuickThreads, kMaxQuick);
  daemon->slow_ = std::make_unique<WorkQueue>("sage-slow", kSlowThreads, kMaxSlow);
  daemon->metrics_.SetCollector([raw = daemon.get()] { raw->CollectGauges(); });
  daemon->BeginCounters();
  daemon->operations_->Recover();
  return daemon;
}

Daemon::~Daemon() {
  metrics_.SetCollector(nullptr);
  if (quick_) quick_->Close();
  if (slow_) slow_->Close();
  if (operations_) operations_->Stop();
  if (engines_) engines_->StopAll(absl::Now());
}

absl::Status Daemon::Admit() const {
  if (draining_) {
    return MakeError(absl::StatusCode::kUnavailable, "DRAINING", "the daemon is stopping and takes no new requests");
  }
  if (!ready_) return MakeError(absl::StatusCode::kUnavailable, "NOT_READY", "the daemon is starting");
  return absl::OkStatus();
}

// An alert on an increase sees nothing when a series begins with its first event: these begin at 0.
void Daemon::BeginCounters() {
  for (const char* kind : {"calibrate", "convert", "evaluate", "start_engine"}) {
    for (const char* state : {"SUCCEEDED", "FAILED", "CANCELLED"}) {
      metrics_.Increment("sage_operations_finished_total", {{"kind", kind}, {"state", state}}, 0);
    }
  }
  for (const char* reason : kLoadRefusals) metrics_.Increment("sage_rejections_total", {{"reason", reason}}, 0);
  for (const char* reason : kOtherRefusals) metrics_.Increment("sage_rejections_total", {{"reason", reason}}, 0);
  for (const char* what : {"tokens", "certificate"}) {
    for (const char* result : {"done", "failed"}) {
      metrics_.Increment("sage_reloads_total", {{"what", what}, {"result", result}}, 0);
    }
    metrics_.SetGauge("sage_reload_failing", {{"what", what}}, 0);
  }
}

void Daemon::CountRefusal(const absl::Status& status) {
  if (IsRefusal(status)) metrics_.Increment("sage_rejections_total", {{"reason", ReasonOf(status)}}, 1);
}

void Daemon::Upkeep() {
  const absl::StatusOr<bool> tokens = door_.Reload();
  const absl::StatusOr<bool> pair = certificates_.Reload();
  for (const auto& [what, result] : {std::make_pair("tokens", &tokens), std::make_pair("certificate", &pair)}) {
    if (!result->ok()) {
      Log(LogLevel::kError, "reload_failed", {{"what", what}, {"message", std::string(result->status().message())}});
      metrics_.Increment("sage_reloads_total", {{"what", what}, {"result", "failed"}}, 1);
      metrics_.SetGauge("sage_reload_failing", {{"what", what}}, 1);
    } else if (**result) {
      Log(LogLevel::kInfo, "reloaded", {{"what", what}});
      metrics_.Increment("sage_reloads_total", {{"what", what}, {"result", "done"}}, 1);
      metrics_.SetGauge("sage_reload_failing", {{"what", what}}, 0);
    }
  }
  tokenizers_.DropUnused(absl::Now());
  engines_->DropOldFailures(absl::Now());
  heap_.Step(absl::Now());
  struct statvfs disk;
  if (statvfs(paths_.data_dir().c_str(), &disk) == 0) {
    disk_free_bytes_ = static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize);
    disk_total_bytes_ = static_cast<double>(disk.f_blocks) * static_cast<double>(disk.f_frsize);
  }
}

void Daemon::StopWork(absl::Time deadline) {
  operations_->Stop();
  engines_->StopAll(deadline);
}

bool Daemon::CheckWatchdog() {
  if (config_.watchdog_seconds <= 0) return true;
  bool healthy = true;
  for (const EngineRecord& record : engines_->List()) {
    if (record.stats.last_step_age_seconds > config_.watchdog_seconds) healthy = false;
  }
  if (healthy_.exchange(healthy) != healthy) {
    Log(healthy ? LogLevel::kInfo : LogLevel::kError, healthy ? "watchdog_recovered" : "watchdog_tripped", {});
  }
  return healthy;
}

void Daemon::CollectGauges() {
  static const char* const kStates[] = {"STARTING", "RUNNING", "STOPPING", "FAILED"};
  std::set<std::string> engines;
  for (const EngineRecord& record : engines_->List()) {
    if (record.refused) continue;
    engines.insert(record.info.engine_id);
    const MetricLabels labels = {{"engine", record.info.engine_id}};
    const EngineStats& stats = record.stats;
    for (const char* state : kStates) {
      metrics_.SetGauge("sage_engine_state", {{"engine", record.info.engine_id}, {"state", state}},
                        record.info.state == state ? 1 : 0);
    }
    metrics_.SetGauge("sage_engine_info",
                      {{"engine", record.info.engine_id},
                       {"model", record.info.model},
                       {"quantization", record.info.quantization},
                       {"kv_quant", record.info.kv_quant},
                       {"backend", record.info.backend}},
                      1);
    const std::pair<const char*, double> gauges[] = {
        {"sage_engine_weight_bytes", static_cast<double>(record.info.weight_bytes)},
        {"sage_engine_kv_bytes", static_cast<double>(record.info.kv_bytes)},
        {"sage_engine_step_age_seconds", stats.last_step_age_seconds},
        {"sage_kv_pages_used", static_cast<double>(stats.kv_pages_used)},
        {"sage_kv_pages_total", static_cast<double>(stats.kv_pages_total)},
        {"sage_kv_page_tokens", static_cast<double>(stats.kv_page_tokens)},
        {"sage_sequences_running", static_cast<double>(stats.running)},
        {"sage_requests_waiting", static_cast<double>(stats.waiting)},
        {"sage_tokens_waiting", static_cast<double>(stats.waiting_tokens)},
    };
    for (const auto& [name, value] : gauges) metrics_.SetGauge(name, labels, value);
    const double pages = static_cast<double>(std::max<int64_t>(1, stats.kv_pages_total));
    metrics_.SetGauge("sage_kv_used_ratio", labels, static_cast<double>(stats.kv_pages_used) / pages);
  }
  ForgetOthers(std::move(engines));
  const auto counts = operations_->Counts();
  for (const char* kind : {"calibrate", "convert", "evaluate", "start_engine"}) {
    for (const char* state : {"PENDING", "RUNNING"}) {
      const auto it = counts.find({kind, state});
      metrics_.SetGauge("sage_operations", {{"kind", kind}, {"state", state}}, it == counts.end() ? 0 : it->second);
    }
  }
  auto progress = operations_->ProgressByKind();
  for (const char* kind : {"calibrate", "convert", "evaluate"}) {
    metrics_.SetGauge("sage_operation_progress_ratio", {{"kind", kind}}, progress[kind]);
  }
  CollectProcess();
}

void Daemon::ForgetOthers(std::set<std::string> engines) {
  std::lock_guard lock(exported_mutex_);
  for (const std::string& id : exported_) {
    if (engines.count(id) == 0) metrics_.RemoveGauges("engine", id);
  }
  exported_ = std::move(engines);
}

void Daemon::CollectProcess() {
  metrics_.SetGauge("sage_build_info", {{"version", SAGE_VERSION}}, 1);
  metrics_.SetGauge("sage_ready", {}, ready() ? 1 : 0);
  metrics_.SetGauge("sage_cpu_limit", {}, limits_.quota_cpus > 0 ? limits_.quota_cpus : limits_.affinity_cpus);
  metrics_.SetGauge("sage_compute_threads", {}, runtime_->threads());
  metrics_.SetGauge("sage_memory_limit_bytes", {}, static_cast<double>(limits_.memory_bytes()));
  if (disk_total_bytes_ >= 0) {
    metrics_.SetGauge("sage_data_free_bytes", {}, disk_free_bytes_);
    metrics_.SetGauge("sage_data_size_bytes", {}, disk_total_bytes_);
  }
  if (certificates_.open()) {
    metrics_.SetGauge("sage_tls_certificate_end_seconds", {},
                      absl::ToDoubleSeconds(certificates_.not_after() - absl::UnixEpoch()));
    if (const absl::Time end = certificates_.authorities_end(); end != absl::InfiniteFuture()) {
      metrics_.SetGauge("sage_tls_client_ca_end_seconds", {}, absl::ToDoubleSeconds(end - absl::UnixEpoch()));
    }
  }
}

}  // namespace sage::server
