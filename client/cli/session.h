// The connection of one `sage` run: channel, credentials, deadlines, Ctrl-C, and how gRPC failures become Failures.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "client/cli/options.h"
#include "google/rpc/status.pb.h"
#include "sagequant/client.h"

namespace sage::cli {

class Session {
 public:
  // Reads `options`, which must outlive it, at the first connect: they are not parsed yet when it is made.
  explicit Session(const GlobalOptions& options);

  // Connects, or says why not (exit code 3). Called by the first RPC of a command.
  std::optional<Failure> Connect();
  const std::shared_ptr<grpc::Channel>& channel() const { return client_->channel(); }
  // Adds the token to a call that Ctrl-C and --timeout do not end.
  void Authorize(grpc::ClientContext* context) const { client_->Authorize(context); }

  // A context with the token and the deadline of --timeout; Ctrl-C cancels it while it lives.
  class Call {
   public:
    explicit Call(Session& session);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    grpc::ClientContext* operator->() { return &context_; }
    grpc::ClientContext* get() { return &context_; }

   private:
    Session& session_;
    grpc::ClientContext context_;
  };

  // Ctrl-C was pressed.
  bool interrupted() const { return interrupted_; }
  // Starts the thread that waits for SIGINT; call once, before any other thread exists.
  void WatchInterrupt();

  Failure ToFailure(const grpc::Status& status) const;

 private:
  friend class Call;
  const GlobalOptions& options_;
  std::unique_ptr<client::Client> client_;
  std::mutex mutex_;
  std::set<grpc::ClientContext*> calls_;
  std::atomic<bool> interrupted_ = false;
};

// A stored google.rpc.Status (of an operation or engine) with its ErrorInfo.
Failure StatusFailure(const google::rpc::Status& status);

}  // namespace sage::cli
