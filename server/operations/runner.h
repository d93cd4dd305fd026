// Runs long operations on low-priority workers, keeps their records current and tells those who watch.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "engine/base/cancel.h"
#include "engine/base/metrics.h"
#include "server/operations/store.h"
#include "server/work_queue.h"

namespace sage::server {

// What an operation ends with: its result as Any bytes and as JSON.
struct OperationOutcome {
  std::string result, result_json;
};
// The work itself: given the spec it was created with. Blocks.
using OperationWork = std::function<absl::StatusOr<OperationOutcome>(
    const OperationRecord& record, const CancelToken& cancel, const ProgressFn& progress)>;

struct OperationKind {
  OperationWork work;
  bool resumable = false;  // a run cut short by the end of the daemon is run again
};

class OperationRunner {
 public:
  // `kinds` by name.
  OperationRunner(OperationStore& store, MetricSink& metrics, std::map<std::string, OperationKind> kinds, int workers);
  ~OperationRunner();  // Stop

  // Continues what the last process left: resumable and pending operations run again, the others are FAILED
  // (DAEMON_RESTARTED).
  void Recover();
  // Records and queues an operation. With a request id a repeat answers the first record.
  absl::StatusOr<OperationRecord> Start(const std::string& kind, const std::string& target, const std::string& spec,
                                        const std::string& request_id);
  // An operation whose work runs elsewhere: recorded as RUNNING until Finish.
  absl::StatusOr<OperationRecord> Begin(const std::string& kind, const std::string& target, const std::string& spec);
  void Progressed(const std::string& id, const Progress& progress);
  void Finish(const std::string& id, const absl::StatusOr<OperationOutcome>& outcome);
  std::shared_ptr<CancelToken> TokenOf(const std::string& id);  // null once ended

  absl::StatusOr<OperationRecord> Get(const std::string& id) const;
  absl::StatusOr<OperationRecord> Cancel(const std::string& id);

  // Calls `listener` with the record now and at each change (progress at most ten times a second), from any thread, in
  // order; the last call has an ended state. Returns a key for Unwatch; after Unwatch returns no call begins.
  using Listener = std::function<void(const OperationRecord&)>;
  absl::StatusOr<int64_t> Watch(const std::string& id, Listener listener);
  void Unwatch(int64_t key);

  // Operations that run or wait, by kind and state.
  std::map<std::pair<std::string, std::string>, int> Counts() const;
  std::map<std::string, double> ProgressByKind() const;
  bool KnowsKind(const std::string& kind) const { return kinds_.count(kind) != 0; }
  bool UsesTarget(const std::string& target) const;

  // Cancels nothing: asks running work to stop and leaves its record RUNNING, so that the next start resumes it.
  void Stop();

 private:
  struct Live {
    OperationRecord record;
    std::shared_ptr<CancelToken> cancel = std::make_shared<CancelToken>();
    int64_t saved_ms = 0, told_ms = 0;
    std::map<int64_t, std::shared_ptr<Listener>> listeners;
    int64_t began_ms = 0;
    int64_t began_done = 0;
  };
  absl::StatusOr<OperationRecord> Insert(OperationRecord record);
  void Enqueue(const std::string& id);
  void Run(const std::string& id);
  void Tell(Live& live);  // with mutex_ held

  OperationStore& store_;
  MetricSink& metrics_;
  const std::map<std::string, OperationKind> kinds_;
  mutable std::recursive_mutex mutex_;
  std::map<std::string, Live> live_;
  int64_t next_watch_ = 1;
  bool stopping_ = false;
  WorkQueue queue_;
};

int64_t NowMs();
// `prefix`-<time>-<random>, unique.
std::string NewId(const std::string& prefix);

}  // namespace sage::server
