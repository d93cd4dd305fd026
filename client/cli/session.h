// The connection of one `sage` run: channel, credentials, deadlines, Ctrl-C, and how gRPC failures become Failures.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "client/cli/options.h"

namespace sage::cli {

class Session {
 public:
  explicit Session(const GlobalOptions& options);

  // Connects, or says why not (exit code 3). Called by the first RPC of a command.
  std::optional<Failure> Connect();
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

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
  std::shared_ptr<grpc::ChannelCredentials> Credentials(std::string* error) const;

  GlobalOptions options_;
  std::string token_;
  std::shared_ptr<grpc::Channel> channel_;
  std::mutex mutex_;
  std::set<grpc::ClientContext*> calls_;
  bool interrupted_ = false;
};

}  // namespace sage::cli
