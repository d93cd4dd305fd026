// Puts the shared parts together, and takes them down in order.
#include "server/daemon.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "server/operations/kinds.h"
#include "server/telemetry/log.h"

namespace sage::server {
namespace {

constexpr int kQuickThreads = 4, kSlowThreads = 16;
constexpr size_t kMaxQuick = 4096, kMaxSlow = 256;

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Create(const DaemonConfig& config, const RuntimeMaker& make_runtime) {
  std::unique_ptr<Daemon> daemon(new Daemon(config));
  SAGE_ASSIGN_OR_RETURN(daemon->paths_, ModelPaths::Create(config.data_dir, config.model_roots));
  if (!config.token_file.empty()) {
    SAGE_ASSIGN_OR_RETURN(std::string text, ReadFile(config.token_file, 1 << 20));
    for (const auto& line : absl::StrSplit(text, '\n')) {
      const std::string token(absl::StripAsciiWhitespace(line));
      if (!token.empty() && token[0] != '#') daemon->token_hashes_.insert(Sha256Hex(token));
    }
    if (daemon->token_hashes_.empty()) {
      return MakeError(absl::StatusCode::kInvalidArgument, "BAD_CONFIG",
                       absl::StrCat("token-file: holds no token: ", config.token_file));
    }
  }
  RuntimeOptions options;
  options.threads = config.threads;
  options.metrics = &daemon->metrics_;
  daemon->runtime_ = make_runtime(options);
  daemon->engines_ = std::make_unique<EngineTable>(*daemon->runtime_);
  SAGE_ASSIGN_OR_RETURN(daemon->store_, OperationStore::Open(daemon->paths_.data_dir() + "/operations.db"));
  daemon->operations_ = std::make_unique<OperationRunner>(*daemon->store_, daemon->metrics_, OperationKinds(*daemon),
                                                          config.operation_workers);
  daemon->quick_ = std::make_unique<WorkQueue>("sage-quick", kQuickThreads, kMaxQuick);
  daemon->slow_ = std::make_unique<WorkQueue>("sage-slow", kSlowThreads, kMaxSlow);
  daemon->metrics_.SetCollector([raw = daemon.get()] { raw->CollectGauges(); });
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

absl::Status Daemon::Authenticate(const std::string& authorization) const {
  if (token_hashes_.empty()) return absl::OkStatus();
  const bool bearer = authorization.size() > 7 && absl::EqualsIgnoreCase(authorization.substr(0, 7), "Bearer ");
  if (!bearer) {
    return MakeError(absl::StatusCode::kUnauthenticated, "TOKEN_MISSING", "authorization: a bearer token is needed");
  }
  // Hashes are compared, so the time it takes says nothing about the token.
  const std::string token(absl::StripAsciiWhitespace(authorization.substr(7)));
  if (token_hashes_.count(Sha256Hex(token)) == 0) {
    return MakeError(absl::StatusCode::kUnauthenticated, "TOKEN_INVALID", "authorization: the token is not accepted");
  }
  return absl::OkStatus();
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
  for (const EngineRecord& record : engines_->List()) {
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
  }
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
  metrics_.SetGauge("sage_build_info", {{"version", SAGE_VERSION}}, 1);
  metrics_.SetGauge("sage_ready", {}, ready() ? 1 : 0);
}

}  // namespace sage::server
