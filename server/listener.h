// Listening sockets of one HOST:PORT, shared by the gRPC and the HTTP port.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace sage::server {

// Owns its descriptors; moving hands them over.
class Listeners {
 public:
  // Binds every address that `host` stands for to one port (0 picks one) and listens without blocking. UNAVAILABLE
  // (CANNOT_LISTEN) names `setting`, the address and why.
  static absl::StatusOr<Listeners> Open(const std::string& setting, const std::string& host, int port);
  Listeners() = default;
  Listeners(Listeners&& other) noexcept;
  Listeners& operator=(Listeners&& other) noexcept;
  ~Listeners();

  const std::vector<int>& fds() const { return fds_; }
  int port() const { return port_; }
  // The next connection that waits at `listener`, non-blocking; -1 when none does or none can be taken now.
  static int Accept(int listener);
  void Close();

 private:
  std::vector<int> fds_;
  int port_ = 0;
};

}  // namespace sage::server
