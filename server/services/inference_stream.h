// The reactors of ModelInfer and ModelStreamInfer: no thread waits while the engine makes tokens.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <mutex>

#include "engine/api/engine.h"
#include "grpcpp/support/server_callback.h"
#include "server/services/call.h"
#include "server/services/inference_request.h"

namespace sage::server {

class Daemon;

// One ModelInfer: gathers the events of one generation and answers once. Deletes itself.
class InferenceCall final : public grpc::ServerUnaryReactor {
 public:
  InferenceCall(Daemon& daemon, InferenceStatistics& statistics);
  void Start(grpc::CallbackServerContext* context, const inference::ModelInferRequest* request,
             inference::ModelInferResponse* response);
  void OnCancel() override;
  void OnDone() override { delete this; }

 private:
  struct Shared {  // outlives the reactor while Submit returns
    std::mutex mutex;
    std::shared_ptr<GenerationHandle> handle;
    bool cancelled = false;
  };
  void Submit(const inference::ModelInferRequest& request);
  void Take(const GenerationEvent& event);
  void End(const absl::Status& status);

  Daemon& daemon_;
  InferenceStatistics& statistics_;
  Call call_;
  std::shared_ptr<Shared> shared_;
  inference::ModelInferResponse* response_ = nullptr;
  InferenceJob job_;
  InferenceOutput output_;
  absl::Time began_;
};

// One ModelStreamInfer: up to 64 generations side by side, answers written one at a time. Deletes itself. Every
// transition is decided under the mutex, the gRPC operation is started outside it.
class InferenceStream final
    : public grpc::ServerBidiReactor<inference::ModelInferRequest, inference::ModelStreamInferResponse> {
 public:
  InferenceStream(Daemon& daemon, InferenceStatistics& statistics);
  void Start(grpc::CallbackServerContext* context);
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // Outlives the reactor: the engine's sinks hold it. `stream` is null once the call is done.
  struct Shared {
    std::mutex mutex;
    InferenceStream* stream;
  };
  struct Running;  // one generation of the stream
  using Handles = std::vector<std::shared_ptr<GenerationHandle>>;
  enum class Action { kNone, kRead, kWrite, kFinish };

  void Submit(uint64_t ticket, const inference::ModelInferRequest& request);
  static void Push(const std::shared_ptr<Shared>& shared, uint64_t ticket, Running& running,
                   const GenerationEvent& event);
  void Fail(uint64_t ticket, const inference::ModelInferRequest& request, const absl::Status& status);
  // With the mutex held:
  void Queue(inference::ModelStreamInferResponse response);
  // Both answer the handles to cancel once the mutex is free.
  Handles QueueError(const std::string& model, const std::string& id, const absl::Status& status);
  Handles EndWith(const absl::Status& status);
  Action Next();  // claims at most one operation
  // Without the mutex: does `action` and what follows from it.
  void Do(Action action);

  Daemon& daemon_;
  InferenceStatistics& statistics_;
  Call call_;
  std::shared_ptr<Shared> shared_;
  bool status_errors_ = false;  // triton_grpc_error
  inference::ModelInferRequest reading_message_;
  inference::ModelStreamInferResponse writing_message_;
  std::deque<inference::ModelStreamInferResponse> queue_;
  size_t queue_bytes_ = 0;
  uint64_t next_ticket_ = 1;
  std::map<uint64_t, std::shared_ptr<GenerationHandle>> active_;  // null until the engine took it
  int submits_ = 0;                                               // requests on a worker
  bool reading_ = false, starting_read_ = false, reads_done_ = false, writing_ = false;
  bool ended_ = false, finished_ = false;
  absl::Status status_;
};

}  // namespace sage::server
