// Runs EngineTable::Start under an operation record, with either side able to cancel.
#include "server/start_engine.h"

#include <atomic>
#include <thread>

#include "engine/base/status.h"
#include "google/protobuf/any.pb.h"
#include "sage/quant/v1/engine.pb.h"
#include "server/convert.h"
#include "server/daemon.h"

namespace sage::server {

absl::StatusOr<EngineRecord> StartEngineWithOperation(
    Daemon& daemon, const pb::StartEngineRequest& request, const CancelToken& cancel,
    const std::function<void(const std::string& engine_id, const std::string& operation)>& on_begun) {
  SAGE_ASSIGN_OR_RETURN(EngineSpec spec, ToEngineSpec(request, daemon.paths()));
  OperationRunner& operations = daemon.operations();
  std::string operation;
  auto both = std::make_shared<CancelToken>();
  const auto forward = [&] {  // whichever side cancelled
    const std::shared_ptr<CancelToken> own = operation.empty() ? nullptr : operations.TokenOf(operation);
    if (cancel.cancelled() || (own != nullptr && own->cancelled())) both->Cancel();
  };
  const auto begun = [&](const std::string& engine_id) {
    absl::StatusOr<OperationRecord> record = operations.Begin("start_engine", engine_id, request.SerializeAsString());
    if (record.ok()) operation = record->id;
    if (on_begun) on_begun(engine_id, operation);
    return operation;
  };
  std::atomic<bool> ended{false};
  std::mutex mutex;
  std::condition_variable wake;
  std::thread watcher([&] {  // the engine looks at one token only
    std::unique_lock lock(mutex);
    while (!ended) {
      if (cancel.cancelled()) both->Cancel();
      wake.wait_for(lock, std::chrono::milliseconds(100));
    }
  });
  absl::StatusOr<EngineRecord> record =
      daemon.engines().Start(std::move(spec), begun, *both, [&](const Progress& progress) {
        forward();
        operations.Progressed(operation, progress);
      });
  {
    std::lock_guard lock(mutex);
    ended = true;
  }
  wake.notify_all();
  watcher.join();
  if (operation.empty()) return record;  // the engine was there already
  if (!record.ok()) {
    operations.Finish(operation, record.status());
    return record;
  }
  pb::Engine message;
  FillEngine(*record, true, &message);
  google::protobuf::Any any;
  any.PackFrom(message);
  operations.Finish(operation, OperationOutcome{any.SerializeAsString(), DumpJson(EngineJson(*record))});
  return record;
}

}  // namespace sage::server
