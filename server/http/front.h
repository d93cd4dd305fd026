// The front of the HTTP port: one thread accepts connections and collects their requests; threads get whole requests
// only, and probes and scrapes have threads of their own. So neither idle nor slow nor many clients hold a thread.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/metrics.h"
#include "server/http/connection.h"
#include "server/listener.h"
#include "server/work_queue.h"

namespace sage::server {

class HttpFront {
 public:
  struct Options {
    std::string host;
    int port = 0;
    int threads = 0;           // requests at once; four times as many wait, then they are refused
    int most_connections = 0;  // beyond: the one that has waited longest for its request gives way
    SSL_CTX* tls = nullptr;    // null = in the clear
    // From the first byte of a request to the end of its header, of its body: who sends slowly ends here.
    absl::Duration header_time = absl::Seconds(10), body_time = absl::Seconds(60);
  };
  // Writes the answer to the request in the connection; false = the connection ends. `last`: the answer must say so.
  using Answer = std::function<bool(Connection&, bool last)>;
  // The whole answer to a request that is not read to its end or not worked on, for `status` with this HTTP code.
  using Refuse = std::function<std::string(const Connection&, const absl::Status& status, int code)>;

  // Listens; nothing is accepted before Start. UNAVAILABLE (CANNOT_LISTEN).
  static absl::StatusOr<std::unique_ptr<HttpFront>> Listen(const Options& options, MetricSink& metrics);
  ~HttpFront();  // Stop

  int port() const { return listeners_.port(); }
  void Start(Answer answer, Refuse refuse);
  // No new connection or request from now on; those that are being answered end first.
  void Stop();

 private:
  HttpFront(const Options& options, MetricSink& metrics);
  void Run();
  void Visit(int fd);
  void AcceptAll(int listener);
  bool MakeRoom();
  void Pump(Connection& connection);
  void Wait(Connection& connection);
  void Dispatch(Connection& connection);
  void TakeBack();
  void TurnAway(Connection& connection, const absl::Status& status, int code);
  void Close(Connection& connection);
  void Sweep(absl::Time now);
  void Report() const;

  const Options options_;
  MetricSink& metrics_;
  Answer answer_;
  Refuse refuse_;
  Listeners listeners_;
  int poll_ = -1, wake_ = -1;
  std::unordered_map<int, std::unique_ptr<Connection>> connections_;
  std::vector<int> again_;  // more may be there that the kernel does not tell of
  size_t buffered_ = 0;     // bytes in all connections
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::vector<std::pair<int, bool>> answered_;  // by workers: the connection, and whether it goes on
  std::unique_ptr<WorkQueue> workers_, probes_;
  std::thread thread_;
};

}  // namespace sage::server
