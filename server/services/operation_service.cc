// OperationService: reads, cancels, waits for and watches long operations. Waiting holds no thread.
#include <deque>
#include <mutex>
#include <optional>

#include "absl/strings/str_cat.h"
#include "grpcpp/alarm.h"
#include "sage/quant/v1/operation.grpc.pb.h"
#include "server/convert.h"
#include "server/convert_status.h"
#include "server/daemon.h"
#include "server/services/call.h"
#include "server/services/services.h"

namespace sage::server {
namespace {

// Shared by the reactor and the listener, so that a late call of the listener finds nothing to write to.
class WatchReactor final : public grpc::ServerWriteReactor<pb::Operation> {
 public:
  WatchReactor(Daemon& daemon)
      : daemon_(daemon), call_(daemon, "grpc", "WatchOperation"), shared_(new Shared{{}, this}) {}

  void Start(grpc::CallbackServerContext* context, const std::string& id) {
    absl::Status status = call_.Open(*context, false);
    if (status.ok()) {
      auto key = daemon_.operations().Watch(id, [shared = shared_](const OperationRecord& record) {
        std::lock_guard lock(shared->mutex);
        if (shared->reactor != nullptr) shared->reactor->Push(record);
      });
      status = key.status();
      if (key.ok()) key_ = *key;
    }
    if (!status.ok()) {
      std::lock_guard lock(shared_->mutex);
      End(status);
    }
  }
  void OnWriteDone(bool ok) override {
    std::lock_guard lock(shared_->mutex);
    writing_ = false;
    if (!ok) return End(absl::CancelledError("the client went away"));
    Next();
  }
  void OnCancel() override {
    std::lock_guard lock(shared_->mutex);
    if (!writing_) End(absl::CancelledError("cancelled by the client"));
  }
  void OnDone() override {
    {
      std::lock_guard lock(shared_->mutex);
      shared_->reactor = nullptr;
    }
    if (key_ != 0) daemon_.operations().Unwatch(key_);
    delete this;
  }

 private:
  struct Shared {
    std::recursive_mutex mutex;
    WatchReactor* reactor;
  };
  // With the mutex held.
  void Push(const OperationRecord& record) {
    if (ended_) return;
    latest_ = record;  // an unread older state is replaced: only the newest matters
    if (!writing_) Next();
  }
  void Next() {
    if (ended_) return;
    if (!latest_) {
      if (last_state_ended_) End(absl::OkStatus());
      return;
    }
    last_state_ended_ = IsEnded(latest_->state);
    message_.Clear();
    FillOperation(*latest_, &message_);
    latest_.reset();
    writing_ = true;
    StartWrite(&message_);
  }
  void End(const absl::Status& status) {
    if (ended_) return;
    ended_ = true;
    call_.SetStatus(status);
    Finish(ToGrpcStatus(status));
  }

  Daemon& daemon_;
  Call call_;
  std::shared_ptr<Shared> shared_;
  int64_t key_ = 0;
  std::optional<OperationRecord> latest_;
  pb::Operation message_;
  bool writing_ = false, ended_ = false, last_state_ended_ = false;
};

class WaitReactor final : public grpc::ServerUnaryReactor {
 public:
  WaitReactor(Daemon& daemon, pb::Operation* response)
      : daemon_(daemon), call_(daemon, "grpc", "WaitOperation"), response_(response), shared_(new Shared{{}, this}) {}

  void Start(grpc::CallbackServerContext* context, const pb::WaitOperationRequest& request) {
    absl::Status status = call_.Open(*context, false);
    if (status.ok() && request.has_timeout() && request.timeout().seconds() < 0) {
      status = BadField("timeout", "OUT_OF_RANGE", "must not be negative");
    }
    if (status.ok()) {
      auto key = daemon_.operations().Watch(request.id(), [shared = shared_](const OperationRecord& record) {
        std::lock_guard lock(shared->mutex);
        if (shared->reactor != nullptr) shared->reactor->Seen(record);
      });
      status = key.status();
      if (key.ok()) key_ = *key;
    }
    std::lock_guard lock(shared_->mutex);
    if (!status.ok()) return End(status);
    if (ended_ || !request.has_timeout()) return;
    const auto wait = std::chrono::seconds(std::min<int64_t>(request.timeout().seconds(), 86400)) +
                      std::chrono::nanoseconds(request.timeout().nanos());
    alarm_.Set(std::chrono::system_clock::now() + std::chrono::duration_cast<std::chrono::system_clock::duration>(wait),
               [shared = shared_](bool fired) {
                 std::lock_guard held(shared->mutex);
                 if (fired && shared->reactor != nullptr) shared->reactor->TimedOut();
               });
  }
  void OnCancel() override {
    std::lock_guard lock(shared_->mutex);
    End(absl::CancelledError("cancelled by the client"));
  }
  void OnDone() override {
    {
      std::lock_guard lock(shared_->mutex);
      shared_->reactor = nullptr;
    }
    if (key_ != 0) daemon_.operations().Unwatch(key_);
    alarm_.Cancel();
    delete this;
  }

 private:
  struct Shared {
    std::recursive_mutex mutex;
    WaitReactor* reactor;
  };
  void Seen(const OperationRecord& record) {
    latest_ = record;
    if (IsEnded(record.state)) TimedOut();
  }
  void TimedOut() {
    if (ended_) return;
    FillOperation(latest_, response_);
    End(absl::OkStatus());
  }
  void End(const absl::Status& status) {
    if (ended_) return;
    ended_ = true;
    call_.SetStatus(status);
    Finish(ToGrpcStatus(status));
  }

  Daemon& daemon_;
  Call call_;
  pb::Operation* response_;
  std::shared_ptr<Shared> shared_;
  grpc::Alarm alarm_;
  OperationRecord latest_;
  int64_t key_ = 0;
  bool ended_ = false;
};

class OperationService final : public pb::OperationService::CallbackService {
 public:
  explicit OperationService(Daemon& daemon) : daemon_(daemon) {}

  grpc::ServerUnaryReactor* GetOperation(grpc::CallbackServerContext* context, const pb::GetOperationRequest* request,
                                         pb::Operation* response) override {
    return RunUnary(daemon_, context, "GetOperation", Lane::kQuick, Admission::kNotNeeded, [=, this](Call&) {
      absl::StatusOr<OperationRecord> record = daemon_.operations().Get(request->id());
      if (record.ok()) FillOperation(*record, response);
      return record.status();
    });
  }
  grpc::ServerUnaryReactor* ListOperations(grpc::CallbackServerContext* context,
                                           const pb::ListOperationsRequest* request,
                                           pb::ListOperationsResponse* response) override {
    return RunUnary(daemon_, context, "ListOperations", Lane::kQuick, Admission::kNotNeeded, [=, this](Call&) {
      if (request->page_size() < 0) return BadField("page_size", "OUT_OF_RANGE", "must not be negative");
      if (!request->kind().empty() && !daemon_.operations().KnowsKind(request->kind())) {
        return BadField(
            "kind", "UNKNOWN_KIND",
            absl::StrCat("must be calibrate, convert, evaluate or start_engine, got \"", request->kind(), "\""));
      }
      const int size = request->page_size() == 0 ? 100 : std::min(request->page_size(), 1000);
      absl::StatusOr<OperationPage> page =
          daemon_.store().List(request->kind(), request->state(), size, request->page_token());
      if (!page.ok()) return page.status();
      for (const OperationRecord& stored : page->records) {
        absl::StatusOr<OperationRecord> current = daemon_.operations().Get(stored.id);  // progress lives in memory
        FillOperation(current.ok() ? *current : stored, response->add_operations());
      }
      response->set_next_page_token(page->next_page_token);
      return absl::OkStatus();
    });
  }
  grpc::ServerUnaryReactor* CancelOperation(grpc::CallbackServerContext* context,
                                            const pb::CancelOperationRequest* request,
                                            pb::Operation* response) override {
    return RunUnary(daemon_, context, "CancelOperation", *request, Lane::kQuick, Admission::kNotNeeded,
                    [=, this](Call&) {
                      absl::StatusOr<OperationRecord> record = daemon_.operations().Cancel(request->id());
                      if (record.ok()) FillOperation(*record, response);
                      return record.status();
                    });
  }
  grpc::ServerUnaryReactor* WaitOperation(grpc::CallbackServerContext* context, const pb::WaitOperationRequest* request,
                                          pb::Operation* response) override {
    auto* reactor = new WaitReactor(daemon_, response);
    reactor->Start(context, *request);
    return reactor;
  }
  grpc::ServerWriteReactor<pb::Operation>* WatchOperation(grpc::CallbackServerContext* context,
                                                          const pb::WatchOperationRequest* request) override {
    auto* reactor = new WatchReactor(daemon_);
    reactor->Start(context, request->id());
    return reactor;
  }

 private:
  Daemon& daemon_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeOperationService(Daemon& daemon) {
  return std::make_unique<OperationService>(daemon);
}

}  // namespace sage::server
