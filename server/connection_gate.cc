// One thread waits for new connections and for the end of those it counts; at rest it sleeps.
#include "server/connection_gate.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "server/telemetry/log.h"

namespace sage::server {
namespace {

constexpr int kEvents = 64;
constexpr unsigned kUserTimeoutMs = 20000;  // unacknowledged data ends a connection, as with gRPC's own listener

absl::Status CannotListen(const std::string& host, int port, const std::string& why) {
  return MakeError(absl::StatusCode::kUnavailable, "CANNOT_LISTEN",
                   absl::StrCat("grpc-listen: cannot listen on ", host, ":", port, ": ", why));
}

bool Watch(int poll, int fd, uint32_t events) {
  epoll_event event = {};
  event.events = events;
  event.data.fd = fd;
  return epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event) == 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ConnectionGate>> ConnectionGate::Listen(const std::string& host, int port, int most,
                                                                       MetricSink& metrics) {
  std::unique_ptr<ConnectionGate> out(new ConnectionGate(most, metrics));
  SAGE_ASSIGN_OR_RETURN(out->listeners_, Listeners::Open("grpc-listen", host, port));
  out->poll_ = epoll_create1(EPOLL_CLOEXEC);
  out->wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  bool ready = out->poll_ >= 0 && out->wake_ >= 0 && Watch(out->poll_, out->wake_, EPOLLIN);
  for (const int fd : out->listeners_.fds()) ready = ready && Watch(out->poll_, fd, EPOLLIN);
  if (!ready) return CannotListen(host, port, std::strerror(errno));
  return out;
}

ConnectionGate::~ConnectionGate() {
  Stop();
  for (const int fd : {poll_, wake_}) {
    if (fd >= 0) close(fd);
  }
}

void ConnectionGate::Start(Take take) {
  take_ = std::move(take);
  Report();
  thread_ = std::thread([this] { Run(); });
}

void ConnectionGate::Stop() {
  if (thread_.joinable()) {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof one);
    thread_.join();
  }
  listeners_.Close();
  for (const int fd : open_) close(fd);
  open_.clear();
}

void ConnectionGate::Report() const {
  metrics_.SetGauge("sage_grpc_connections", {}, static_cast<double>(open_.size()));
}

void ConnectionGate::AcceptAll(int listener) {
  for (int fd = Listeners::Accept(listener); fd >= 0; fd = Listeners::Accept(listener)) {
    const int twin = open_.size() < most_ ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
    if (twin < 0 || !Watch(poll_, twin, 0)) {
      if (twin >= 0) close(twin);
      close(fd);
      metrics_.Increment("sage_rejections_total", {{"reason", "TOO_MANY_CONNECTIONS"}}, 1);
      continue;
    }
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &kUserTimeoutMs, sizeof kUserTimeoutMs);
    open_.insert(twin);
    Report();
    take_(listener, fd);
  }
}

void ConnectionGate::Run() {
  epoll_event events[kEvents];
  while (true) {
    const int count = epoll_wait(poll_, events, kEvents, -1);
    bool stop = false;
    // Ended connections first, so that their places are free for those that wait.
    for (int i = 0; i < count; ++i) {
      const int fd = events[i].data.fd;
      stop = stop || fd == wake_;
      if (open_.erase(fd) != 0) close(fd);
    }
    if (stop) return;
    for (int i = 0; i < count; ++i) {
      const int fd = events[i].data.fd;
      const std::vector<int>& ours = listeners_.fds();
      if (std::find(ours.begin(), ours.end(), fd) != ours.end()) AcceptAll(fd);
    }
    if (count > 0) Report();
  }
}

}  // namespace sage::server
