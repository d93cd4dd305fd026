// The gRPC port: services, health, reflection, limits, TLS.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/config.h"

namespace grpc {
class ServerBuilder;
}

namespace sage::server {

class Daemon;

class GrpcServer {
 public:
  // Listens and serves; health is NOT_SERVING until SetServing(true). UNAVAILABLE (CANNOT_LISTEN).
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(Daemon& daemon);
  ~GrpcServer();

  const std::string& address() const { return address_; }  // "127.0.0.1:41234" or "unix:PATH"
  void SetServing(bool serving);
  // Refuses new calls, lets running ones end until `deadline`, then cuts them. Once, from a plain thread.
  void Shutdown(absl::Time deadline);

 private:
  GrpcServer();
  // Sets the port that was bound in `address`.
  absl::Status Listen(Daemon& daemon, grpc::ServerBuilder& builder, ListenAddress& address);
  struct State;
  std::unique_ptr<State> state_;
  std::string address_;
};

}  // namespace sage::server
