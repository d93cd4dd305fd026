// What every RPC has in common: identity, authentication, admission, deadline, cancellation, one log line and metrics.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/api/engine.h"
#include "engine/base/cancel.h"
#include "server/telemetry/trace.h"

namespace google::protobuf {
class Message;
}

namespace grpc {
class CallbackServerContext;
class ServerUnaryReactor;
}  // namespace grpc

namespace sage::server {

class Daemon;

// One call of a client, over gRPC or HTTP. Its destructor writes the log line and the metrics.
class Call {
 public:
  Call(Daemon& daemon, std::string interface, std::string method);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // Reads identity, deadline and credentials; not OK when the call must be refused.
  // Answers with a `traceparent` of its own in the initial metadata.
  absl::Status Open(grpc::CallbackServerContext& context, bool admit);
  absl::Status Open(const std::string& authorization, const std::string& request_id, const TraceHeaders& trace,
                    bool admit);
  void SetStatus(const absl::Status& status) { status_ = status; }
  void SetEngine(const std::string& engine_id) { engine_ = engine_id; }
  void SetPeer(std::string peer) { peer_ = std::move(peer); }
  // The name in the client's verified certificate: the caller where no token says more.
  void SetCertificate(std::string name) { certificate_ = std::move(name); }
  // What the call is about, for log and audit: "model", "artifact", "output", ... An empty value says nothing.
  void SetTarget(const std::string& what, const std::string& value);
  // The fields of a request that say so.
  void SetTargets(const google::protobuf::Message& request);
  const TraceContext& trace() const { return trace_; }
  // A request of this call ended: what it waited, read and wrote become spans inside the call's. From any thread.
  void TraceGeneration(absl::Time began, const GenerationEvent& last) const;
  absl::Time began() const { return began_; }

  CancelToken cancel;
  absl::Time deadline = absl::InfiniteFuture();
  std::string request_id;

 private:
  Daemon& daemon_;
  const std::string interface_, method_;
  void WriteRecords(double seconds);                  // log, audit, span
  std::string engine_, peer_, caller_, certificate_;  // caller: the token's name
  std::vector<std::pair<std::string, std::string>> targets_;
  TraceContext trace_;
  absl::Time began_;
  absl::Status status_;
};

enum class Lane { kQuick, kSlow };
enum class Admission { kNeeded, kNotNeeded };

// Runs `work` on a worker and finishes the call with its status; `work` fills the response it captured.
grpc::ServerUnaryReactor* RunUnary(Daemon& daemon, grpc::CallbackServerContext* context, const char* method, Lane lane,
                                   Admission admission, std::function<absl::Status(Call&)> work);

// The same for a call that changes something: `request` says what.
grpc::ServerUnaryReactor* RunUnary(Daemon& daemon, grpc::CallbackServerContext* context, const char* method,
                                   const google::protobuf::Message& request, Lane lane, Admission admission,
                                   std::function<absl::Status(Call&)> work);

// The refusal when the workers' queue is full.
absl::Status WorkersBusy();

}  // namespace sage::server
