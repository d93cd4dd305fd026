// Operation life cycle: PENDING -> RUNNING -> SUCCEEDED | FAILED | CANCELLED, every change stored and told.
#include "server/operations/runner.h"

#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "google/rpc/status.pb.h"
#include "server/convert_status.h"
#include "server/telemetry/log.h"

namespace sage::server {
namespace {

constexpr int kNice = 10;
constexpr size_t kMaxWaiting = 256;
constexpr int64_t kSaveEveryMs = 500, kTellEveryMs = 100;

}  // namespace

int64_t NowMs() { return absl::ToUnixMillis(absl::Now()); }

std::string NewId(const std::string& prefix) {
  static std::mutex mutex;
  static auto* random = new std::mt19937_64(std::random_device{}());
  std::lock_guard lock(mutex);
  const std::string time = absl::FormatTime("%Y%m%d%H%M%S", absl::Now(), absl::UTCTimeZone());
  return absl::StrCat(prefix, "-", time, "-", absl::StrFormat("%08x", static_cast<uint32_t>((*random)())));
}

OperationRunner::OperationRunner(OperationStore& store, MetricSink& metrics, std::map<std::string, OperationKind> kinds,
                                 int workers)
    : store_(store),
      metrics_(metrics),
      kinds_(std::move(kinds)),
      queue_("sage-operation", workers, kMaxWaiting, kNice) {}

OperationRunner::~OperationRunner() { Stop(); }

void OperationRunner::Recover() {
  for (OperationRecord& record : store_.Unfinished()) {
    const auto kind = kinds_.find(record.kind);
    const bool again = kind != kinds_.end() && kind->second.work != nullptr && !record.cancel_requested &&
                       (kind->second.resumable || record.state == OperationState::kPending);
    if (!again) {
      const bool cancelled = record.cancel_requested;
      record.state = cancelled ? OperationState::kCancelled : OperationState::kFailed;
      record.error = ToRpcStatus(cancelled ? MakeError(absl::StatusCode::kCancelled, "CANCELLED", "cancelled")
                                           : MakeError(absl::StatusCode::kAborted, "DAEMON_RESTARTED",
                                                       absl::StrCat(record.kind, ": the daemon ended while it ran")))
                         .SerializeAsString();
      record.end_ms = record.update_ms = NowMs();
      (void)store_.Update(record);
      continue;
    }
    Log(LogLevel::kInfo, "operation_resumed", {{"id", record.id}, {"kind", record.kind}, {"target", record.target}});
    record.state = OperationState::kPending;
    (void)store_.Update(record);
    const std::string id = record.id;
    {
      std::lock_guard lock(mutex_);
      live_[id].record = std::move(record);
    }
    Enqueue(id);
  }
}

absl::StatusOr<OperationRecord> OperationRunner::Insert(OperationRecord record) {
  record.id = NewId(record.kind);
  record.create_ms = record.update_ms = NowMs();
  SAGE_RETURN_IF_ERROR(store_.Create(record));
  live_[record.id].record = record;
  return record;
}

absl::StatusOr<OperationRecord> OperationRunner::Start(const std::string& kind, const std::string& target,
                                                       const std::string& spec, const std::string& request_id) {
  std::lock_guard lock(mutex_);
  if (stopping_) {
    return MakeError(absl::StatusCode::kUnavailable, "DRAINING", "the daemon is stopping and takes no new operations");
  }
  const std::string hash = Sha256Hex(spec);
  if (!request_id.empty()) {
    SAGE_ASSIGN_OR_RETURN(std::optional<std::string> answer, store_.FindRequest(request_id, kind, hash));
    if (answer) return Get(*answer);
  }
  size_t waiting = 0;
  for (const auto& [id, live] : live_) waiting += live.record.state == OperationState::kPending;
  if (waiting >= kMaxWaiting) {
    return MakeError(absl::StatusCode::kResourceExhausted, "TOO_MANY_OPERATIONS",
                     absl::StrCat("operations: at most ", kMaxWaiting, " wait at once"));
  }
  OperationRecord record;
  record.kind = kind;
  record.target = target;
  record.spec = spec;
  record.request_id = request_id;
  SAGE_ASSIGN_OR_RETURN(record, Insert(std::move(record)));
  if (!request_id.empty()) SAGE_RETURN_IF_ERROR(store_.RecordRequest(request_id, kind, hash, record.id));
  Enqueue(record.id);
  return record;
}

absl::StatusOr<OperationRecord> OperationRunner::Begin(const std::string& kind, const std::string& target,
                                                       const std::string& spec) {
  std::lock_guard lock(mutex_);
  OperationRecord record;
  record.kind = kind;
  record.target = target;
  record.spec = spec;
  record.state = OperationState::kRunning;
  record.start_ms = NowMs();
  record.attempts = 1;
  SAGE_ASSIGN_OR_RETURN(record, Insert(std::move(record)));
  live_[record.id].began_ms = record.start_ms;
  return record;
}

void OperationRunner::Enqueue(const std::string& id) {
  if (!queue_.Submit([this, id] { Run(id); })) {
    Finish(id, MakeError(absl::StatusCode::kUnavailable, "DRAINING", "the daemon is stopping"));
  }
}

void OperationRunner::Run(const std::string& id) {
  OperationRecord record;
  std::shared_ptr<CancelToken> cancel;
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;  // stays PENDING for the next start
    auto it = live_.find(id);
    if (it == live_.end()) return;
    Live& live = it->second;
    live.record.state = OperationState::kRunning;
    live.record.start_ms = live.record.update_ms = live.began_ms = NowMs();
    ++live.record.attempts;
    (void)store_.Update(live.record);
    Tell(live);
    record = live.record;
    cancel = live.cancel;
  }
  Log(LogLevel::kInfo, "operation_started", {{"id", id}, {"kind", record.kind}, {"target", record.target}});
  const auto tell = [&](const Progress& progress) { Progressed(id, progress); };
  const absl::StatusOr<OperationOutcome> outcome = cancel->cancelled()
                                                       ? absl::StatusOr<OperationOutcome>(cancel->Check())
                                                       : kinds_.at(record.kind).work(record, *cancel, tell);
  {
    std::lock_guard lock(mutex_);
    auto it = live_.find(id);
    const bool interrupted = stopping_ && !outcome.ok() && absl::IsCancelled(outcome.status()) && it != live_.end() &&
                             !it->second.record.cancel_requested;
    if (interrupted) return;  // stays RUNNING: the next start resumes it
  }
  Finish(id, outcome);
}

void OperationRunner::Progressed(const std::string& id, const Progress& progress) {
  std::lock_guard lock(mutex_);
  auto it = live_.find(id);
  if (it == live_.end()) return;
  Live& live = it->second;
  OperationRecord& record = live.record;
  const bool other_stage = record.stage != progress.stage;
  const int64_t now = NowMs();
  if (record.unit != progress.unit || record.total != progress.total || progress.done < record.done) {
    record.phase_start_ms = now;
    record.phase_start_done = progress.done;
  }
  record.stage = progress.stage;
  record.unit = progress.unit;
  record.done = progress.done;
  record.total = progress.total;
  record.update_ms = now;
  if (now - live.saved_ms >= kSaveEveryMs) {
    live.saved_ms = now;
    (void)store_.Update(record);
  }
  if (now - live.told_ms >= kTellEveryMs || (other_stage && now - live.told_ms >= kTellEveryMs / 10)) {
    live.told_ms = now;
    Tell(live);
  }
}

void OperationRunner::Finish(const std::string& id, const absl::StatusOr<OperationOutcome>& outcome) {
  std::lock_guard lock(mutex_);
  auto it = live_.find(id);
  if (it == live_.end()) return;
  OperationRecord& record = it->second.record;
  if (outcome.ok()) {
    record.state = OperationState::kSucceeded;
    record.result = outcome->result;
    record.result_json = outcome->result_json;
    if (record.total > 0) record.done = record.total;
  } else {
    record.state = absl::IsCancelled(outcome.status()) ? OperationState::kCancelled : OperationState::kFailed;
    record.error = ToRpcStatus(outcome.status()).SerializeAsString();
  }
  record.end_ms = record.update_ms = NowMs();
  (void)store_.Update(record);
  const char* state = OperationStateName(record.state);
  metrics_.Increment("sage_operations_finished_total", {{"kind", record.kind}, {"state", state}}, 1);
  if (record.start_ms > 0) {
    metrics_.Observe("sage_operation_seconds", {{"kind", record.kind}},
                     static_cast<double>(record.end_ms - record.start_ms) * 0.001);
  }
  Json line = {{"id", id}, {"kind", record.kind}, {"target", record.target}, {"state", state}};
  if (!outcome.ok()) {
    line["reason"] = ReasonOf(outcome.status());
    line["message"] = std::string(outcome.status().message());
  }
  Log(outcome.ok() ? LogLevel::kInfo : LogLevel::kWarn, "operation_ended", line);
  Tell(it->second);
  live_.erase(it);
}

std::shared_ptr<CancelToken> OperationRunner::TokenOf(const std::string& id) {
  std::lock_guard lock(mutex_);
  auto it = live_.find(id);
  return it == live_.end() ? nullptr : it->second.cancel;
}

absl::StatusOr<OperationRecord> OperationRunner::Get(const std::string& id) const {
  {
    std::lock_guard lock(mutex_);
    auto it = live_.find(id);
    if (it != live_.end()) return it->second.record;
  }
  return store_.Get(id);
}

absl::StatusOr<OperationRecord> OperationRunner::Cancel(const std::string& id) {
  std::lock_guard lock(mutex_);
  auto it = live_.find(id);
  if (it == live_.end()) return store_.Get(id);
  OperationRecord& record = it->second.record;
  record.cancel_requested = true;
  record.update_ms = NowMs();
  it->second.cancel->Cancel();
  (void)store_.Update(record);
  if (record.state == OperationState::kPending) {
    Finish(id, MakeError(absl::StatusCode::kCancelled, "CANCELLED", "cancelled before it began"));
    return store_.Get(id);
  }
  Tell(it->second);
  return record;
}

void OperationRunner::Tell(Live& live) {
  const OperationRecord record = live.record;
  const auto listeners = live.listeners;
  for (const auto& [key, listener] : listeners) (*listener)(record);
}

absl::StatusOr<int64_t> OperationRunner::Watch(const std::string& id, Listener listener) {
  std::lock_guard lock(mutex_);
  auto it = live_.find(id);
  if (it == live_.end()) {
    SAGE_ASSIGN_OR_RETURN(OperationRecord record, store_.Get(id));
    listener(record);
    return 0;
  }
  const int64_t key = next_watch_++;
  it->second.listeners[key] = std::make_shared<Listener>(std::move(listener));
  (*it->second.listeners[key])(it->second.record);
  return key;
}

void OperationRunner::Unwatch(int64_t key) {
  std::lock_guard lock(mutex_);
  for (auto& [id, live] : live_) live.listeners.erase(key);
}

std::map<std::pair<std::string, std::string>, int> OperationRunner::Counts() const {
  std::lock_guard lock(mutex_);
  std::map<std::pair<std::string, std::string>, int> out;
  for (const auto& [id, live] : live_) ++out[{live.record.kind, OperationStateName(live.record.state)}];
  return out;
}

std::map<std::string, double> OperationRunner::ProgressByKind() const {
  std::lock_guard lock(mutex_);
  std::map<std::string, double> out;
  for (const auto& [id, live] : live_) {
    const OperationRecord& record = live.record;
    const double ratio = record.total > 0 ? static_cast<double>(record.done) / static_cast<double>(record.total) : 0.0;
    out[record.kind] = std::max(out[record.kind], ratio);
  }
  return out;
}

bool OperationRunner::UsesTarget(const std::string& target) const {
  std::lock_guard lock(mutex_);
  for (const auto& [id, live] : live_) {
    if (live.record.target == target) return true;
  }
  return false;
}

void OperationRunner::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    for (auto& [id, live] : live_) live.cancel->Cancel();
  }
  queue_.Close();
}

}  // namespace sage::server
