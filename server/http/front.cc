// epoll, each descriptor armed once for each wait: while a worker has a connection nothing is heard of it.
#include "server/http/front.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status.h"

namespace sage::server {
namespace {

constexpr int kEvents = 64, kTickMs = 250;
constexpr size_t kPiece = 64 << 10, kMostAtOnce = 1 << 20;
// Bodies of all connections together; the first piece of each connection is always taken.
constexpr size_t kMostBuffered = 256 << 20;
constexpr int kProbeThreads = 2, kMostAnswers = 1000, kWaitingAThread = 4;
constexpr size_t kMostProbes = 256;
constexpr absl::Duration kFirstByteTime = absl::Seconds(10), kIdleTime = absl::Seconds(60);
constexpr absl::Duration kClosingTime = absl::Seconds(5);

void Arm(int poll, int fd, int how, uint32_t events) {
  epoll_event event = {};
  event.events = events;
  event.data.fd = fd;
  epoll_ctl(poll, how, fd, &event);
}

bool IsProbe(const FrameReader& frame) {
  if (frame.method() != "GET" && frame.method() != "HEAD") return false;
  return frame.path() == "/metrics" || frame.path() == "/health" || frame.path().rfind("/health/", 0) == 0;
}

absl::Status Busy(const std::string& what) {
  return MakeError(absl::StatusCode::kResourceExhausted, "HTTP_BUSY",
                   absl::StrCat("http: ", what, "; retry, or use gRPC"));
}

}  // namespace

HttpFront::HttpFront(const Options& options, MetricSink& metrics) : options_(options), metrics_(metrics) {}

absl::StatusOr<std::unique_ptr<HttpFront>> HttpFront::Listen(const Options& options, MetricSink& metrics) {
  std::unique_ptr<HttpFront> out(new HttpFront(options, metrics));
  SAGE_ASSIGN_OR_RETURN(out->listeners_, Listeners::Open("http-listen", options.host, options.port));
  out->poll_ = epoll_create1(EPOLL_CLOEXEC);
  out->wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (out->poll_ < 0 || out->wake_ < 0) {
    return MakeError(absl::StatusCode::kUnavailable, "CANNOT_LISTEN",
                     absl::StrCat("http-listen: cannot wait for connections: ", std::strerror(errno)));
  }
  Arm(out->poll_, out->wake_, EPOLL_CTL_ADD, EPOLLIN);
  for (const int fd : out->listeners_.fds()) Arm(out->poll_, fd, EPOLL_CTL_ADD, EPOLLIN);
  return out;
}

HttpFront::~HttpFront() {
  Stop();
  for (const int fd : {poll_, wake_}) {
    if (fd >= 0) close(fd);
  }
}

void HttpFront::Start(Answer answer, Refuse refuse) {
  answer_ = std::move(answer);
  refuse_ = std::move(refuse);
  // Some connections always wait for their requests, so that MakeRoom finds one.
  const int spare = std::max(1, (options_.most_connections - options_.threads) / 2);
  const int waiting = std::min(kWaitingAThread * options_.threads, spare);
  workers_ = std::make_unique<WorkQueue>("sage-http", options_.threads, static_cast<size_t>(waiting));
  probes_ = std::make_unique<WorkQueue>("sage-probe", kProbeThreads, kMostProbes);
  Report();
  thread_ = std::thread([this] { Run(); });
}

void HttpFront::Stop() {
  stopping_ = true;
  if (thread_.joinable()) {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof one);
    thread_.join();
  }
  listeners_.Close();
  if (workers_ != nullptr) workers_->Close();
  if (probes_ != nullptr) probes_->Close();
  connections_.clear();
}

void HttpFront::Report() const {
  metrics_.SetGauge("sage_http_connections", {}, static_cast<double>(connections_.size()));
}

void HttpFront::Run() {
  epoll_event events[kEvents];
  absl::Time swept = absl::Now();
  while (!stopping_) {
    const int count = epoll_wait(poll_, events, kEvents, again_.empty() ? kTickMs : 0);
    if (stopping_) return;
    // The wake-up before what it announces: one that comes later is kept.
    if (std::any_of(events, events + std::max(count, 0), [this](const epoll_event& e) { return e.data.fd == wake_; })) {
      uint64_t wakes = 0;
      [[maybe_unused]] const ssize_t read_bytes = read(wake_, &wakes, sizeof wakes);
    }
    TakeBack();
    for (const int fd : std::exchange(again_, {})) Visit(fd);
    for (int i = 0; i < count; ++i) {
      const std::vector<int>& ours = listeners_.fds();
      if (std::find(ours.begin(), ours.end(), events[i].data.fd) != ours.end()) {
        AcceptAll(events[i].data.fd);
      } else {
        Visit(events[i].data.fd);
      }
    }
    if (const absl::Time now = absl::Now(); now - swept >= absl::Milliseconds(kTickMs)) {
      Sweep(now);
      swept = now;
    }
    Report();
  }
}

void HttpFront::Visit(int fd) {
  const auto it = connections_.find(fd);  // it may have ended since
  if (it != connections_.end() && !it->second->with_worker) Pump(*it->second);
}

void HttpFront::AcceptAll(int listener) {
  for (int fd = Listeners::Accept(listener); fd >= 0; fd = Listeners::Accept(listener)) {
    if (connections_.size() >= static_cast<size_t>(options_.most_connections)) {
      metrics_.Increment("sage_rejections_total", {{"reason", "TOO_MANY_CONNECTIONS"}}, 1);
      if (!MakeRoom()) {
        close(fd);
        continue;
      }
    }
    auto connection = std::make_unique<Connection>(fd, options_.tls);
    Arm(poll_, fd, EPOLL_CTL_ADD, EPOLLONESHOT);
    Connection& one = *connection;
    connections_[fd] = std::move(connection);
    Report();
    Pump(one);
  }
}

// A full house must not keep probes out: whoever has waited longest without a whole request goes.
bool HttpFront::MakeRoom() {
  Connection* oldest = nullptr;
  for (const auto& [fd, connection] : connections_) {
    if (connection->with_worker) continue;
    if (oldest == nullptr || connection->since < oldest->since) oldest = connection.get();
  }
  if (oldest == nullptr) return false;
  Close(*oldest);
  return true;
}

void HttpFront::Wait(Connection& connection) {
  const uint32_t events = connection.wants_write() ? EPOLLOUT : EPOLLIN | EPOLLRDHUP;
  Arm(poll_, connection.fd(), EPOLL_CTL_MOD, events | EPOLLONESHOT);
}

// Reads what is there until the request is whole, nothing is left, or others have waited long enough.
void HttpFront::Pump(Connection& connection) {
  size_t taken = 0;
  while (true) {
    if (connection.closing) {
      buffered_ -= connection.in.size();
      connection.in.clear();
    } else if (!connection.in.empty()) {
      const FrameReader::State state = connection.frame.Look(connection.in);
      if (state == FrameReader::State::kComplete) return Dispatch(connection);
      if (state == FrameReader::State::kBad) {
        return TurnAway(connection, connection.frame.error(), connection.frame.http_code());
      }
      if (state == FrameReader::State::kBody && connection.frame.expects_continue() && !connection.continued) {
        connection.continued = true;
        connection.Send("HTTP/1.1 100 Continue\r\n\r\n", absl::ZeroDuration());
      }
      if (buffered_ > kMostBuffered && connection.in.size() > kPiece) {
        return TurnAway(connection, Busy("the bodies that arrive now fill the memory for them"), 429);
      }
    }
    if (taken >= kMostAtOnce) {
      again_.push_back(connection.fd());
      return;
    }
    const bool first = connection.in.empty();
    const size_t had = connection.in.size();
    const Connection::Filled filled = connection.Fill(kPiece);
    taken += connection.in.size() - had;
    buffered_ += connection.in.size() - had;
    if (first && !connection.in.empty() && !connection.closing) connection.since = absl::Now();
    if (filled == Connection::Filled::kEnded) return Close(connection);
    if (filled == Connection::Filled::kNothingYet) return Wait(connection);
  }
}

void HttpFront::Dispatch(Connection& connection) {
  connection.with_worker = true;
  connection.read_at = 0;
  // A crowded port keeps no connection for requests that may come.
  const bool crowded = connections_.size() > static_cast<size_t>(options_.most_connections) * 3 / 4;
  const bool last = crowded || ++connection.answered >= kMostAnswers;
  WorkQueue& queue = IsProbe(connection.frame) ? *probes_ : *workers_;
  const bool taken = queue.Submit([this, &connection, last] {
    const bool more = answer_(connection, last);
    {
      std::lock_guard lock(mutex_);
      answered_.emplace_back(connection.fd(), more);
    }
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(wake_, &one, sizeof one);
  });
  if (taken) return;
  connection.with_worker = false;
  TurnAway(connection, Busy("every thread is busy and as many requests wait as may"), 429);
}

void HttpFront::TakeBack() {
  std::vector<std::pair<int, bool>> done;
  {
    std::lock_guard lock(mutex_);
    done.swap(answered_);
  }
  for (const auto& [fd, more] : done) {
    Connection& connection = *connections_.at(fd);
    connection.with_worker = false;
    if (!more) {
      Close(connection);
      continue;
    }
    const size_t size = connection.frame.size();
    buffered_ -= size;
    connection.in.erase(0, size);
    if (connection.in.capacity() > kMostAtOnce) connection.in.shrink_to_fit();
    connection.frame = FrameReader();
    connection.continued = false;
    connection.since = absl::Now();
    Pump(connection);
  }
}

// The client may still be sending: its bytes are read and dropped for a while, or it would see a reset, not the answer.
void HttpFront::TurnAway(Connection& connection, const absl::Status& status, int code) {
  const bool told = connection.Send(refuse_(connection, status, code), absl::ZeroDuration());
  if (!told) return Close(connection);
  connection.EndWriting();
  connection.closing = true;
  connection.since = absl::Now();
  again_.push_back(connection.fd());
}

void HttpFront::Close(Connection& connection) {
  buffered_ -= connection.in.size();
  connections_.erase(connection.fd());  // closing the descriptor takes it out of epoll
}

void HttpFront::Sweep(absl::Time now) {
  std::vector<Connection*> late;
  for (const auto& [fd, each] : connections_) {
    if (each->with_worker) continue;
    const absl::Duration limit = each->closing ? kClosingTime
                                 : !each->in.empty()
                                     ? (each->frame.header_bytes() > 0 ? options_.body_time : options_.header_time)
                                 : each->answered == 0 ? kFirstByteTime
                                                       : kIdleTime;
    if (now - each->since > limit) late.push_back(each.get());
  }
  for (Connection* each : late) {
    if (each->closing || each->in.empty()) {
      Close(*each);
    } else {
      TurnAway(*each, MakeError(absl::StatusCode::kCancelled, "REQUEST_TIMEOUT", "request: it did not arrive in time"),
               408);
    }
  }
}

}  // namespace sage::server
