// The server side of one Generate or Chat call: takes updates from the engine's step thread, writes them one at a time.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <mutex>

#include "absl/status/statusor.h"
#include "engine/api/engine.h"
#include "grpcpp/support/server_callback.h"
#include "sage/quant/v1/generation.pb.h"
#include "server/services/call.h"
#include "server/services/update_gatherer.h"

namespace sage::server {

class Daemon;

class GenerationStream final : public grpc::ServerWriteReactor<quant::v1::GenerationUpdate> {
 public:
  // What to generate and where; made on a worker, since tokenizing a long prompt takes time.
  struct Prepared {
    std::shared_ptr<InferenceEngine> engine;
    GenerateSpec spec;
    int64_t stream_interval = 1;  // tokens of a choice in one update
  };
  using Prepare = std::function<absl::StatusOr<Prepared>(Call&)>;

  GenerationStream(Daemon& daemon, const char* method);
  void Start(grpc::CallbackServerContext* context, Prepare prepare);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // Outlives the reactor: the engine's sink holds it. `stream` is null once the call is done.
  struct Shared {
    std::mutex mutex;
    GenerationStream* stream;
  };
  enum class Action { kNone, kWrite, kFinish };

  void Submit(const Prepare& prepare);
  static void Push(const std::shared_ptr<Shared>& shared, const GenerationEvent& event, const Tokenizer* tokenizer,
                   bool logprobs);
  void Fail(const absl::Status& status);  // takes the mutex
  Action Next();                          // with the mutex held: claims the one write or the one finish
  void Do(Action action);                 // without the mutex

  Daemon& daemon_;
  Call call_;
  std::shared_ptr<Shared> shared_;
  std::shared_ptr<InferenceEngine> engine_;
  std::shared_ptr<GenerationHandle> handle_;
  UpdateGatherer gatherer_{1};
  std::deque<quant::v1::GenerationUpdate> queue_;
  size_t queue_bytes_ = 0;
  quant::v1::GenerationUpdate writing_message_;
  bool writing_ = false, ended_ = false, finished_ = false;
  absl::Status status_;
};

}  // namespace sage::server
