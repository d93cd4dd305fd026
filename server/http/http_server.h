// The HTTP port: health, metrics, the OpenAI API and the management API.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace sage::server {

class Daemon;

class HttpServer {
 public:
  // Listens and serves on its own threads. UNAVAILABLE (CANNOT_LISTEN).
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(Daemon& daemon);
  ~HttpServer();

  const std::string& address() const { return address_; }
  void SetServing(bool serving);  // what /health/ready says
  void Stop();

 private:
  HttpServer();
  struct State;
  std::unique_ptr<State> state_;
  std::string address_;
};

}  // namespace sage::server
