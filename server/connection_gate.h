// Listens for the gRPC port and hands over accepted connections, so that there is a limit of them: gRPC 1.51 has none.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <unordered_set>

#include "absl/status/statusor.h"
#include "engine/base/metrics.h"
#include "server/listener.h"

namespace sage::server {

class ConnectionGate {
 public:
  // Takes over `fd`, a connected non-blocking socket that `listener_fd` accepted.
  using Take = std::function<void(int listener_fd, int fd)>;

  // Binds every address that `host` stands for to one port (0 picks one) and listens; nothing is accepted before Start.
  // UNAVAILABLE (CANNOT_LISTEN) names the address and why.
  static absl::StatusOr<std::unique_ptr<ConnectionGate>> Listen(const std::string& host, int port, int most,
                                                                MetricSink& metrics);
  // Stops.
  ~ConnectionGate();
  ConnectionGate(const ConnectionGate&) = delete;
  ConnectionGate& operator=(const ConnectionGate&) = delete;

  int port() const { return listeners_.port(); }
  // Accepts from now on, from a thread of its own. Beyond `most` open connections the next are closed at once and
  // counted (sage_rejections_total, TOO_MANY_CONNECTIONS).
  void Start(Take take);
  // Closes the listeners: connections that come now are refused, those that are open stay.
  void Stop();

 private:
  ConnectionGate(int most, MetricSink& metrics) : most_(most), metrics_(metrics) {}
  void Run();
  void AcceptAll(int listener);
  void Report() const;

  const size_t most_;
  MetricSink& metrics_;
  int poll_ = -1, wake_ = -1;
  Listeners listeners_;
  // Second descriptors of open connections. gRPC shuts a socket down before it closes its own, which hangs these up.
  std::unordered_set<int> open_;
  Take take_;
  std::thread thread_;
};

}  // namespace sage::server
