// getaddrinfo, then one socket an address.
#include "server/listener.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage::server {
namespace {

constexpr int kBacklog = 1024;

// A listening socket of this address; -1 with errno.
int OpenListener(const addrinfo& address, bool others) {
  const int fd = socket(address.ai_family, address.ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, address.ai_protocol);
  if (fd < 0) return -1;
  const int on = 1, narrow = others ? 1 : 0;  // "::" alone takes both versions
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (address.ai_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &narrow, sizeof narrow);
  if (bind(fd, address.ai_addr, address.ai_addrlen) == 0 && listen(fd, kBacklog) == 0) return fd;
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

int PortOf(int fd) {
  sockaddr_storage bound = {};
  socklen_t length = sizeof bound;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &length) != 0) return 0;
  if (bound.ss_family == AF_INET6) return ntohs(reinterpret_cast<const sockaddr_in6&>(bound).sin6_port);
  return ntohs(reinterpret_cast<const sockaddr_in&>(bound).sin_port);
}

}  // namespace

absl::StatusOr<Listeners> Listeners::Open(const std::string& setting, const std::string& host, int port) {
  const auto refuse = [&](const std::string& why) {
    return MakeError(absl::StatusCode::kUnavailable, "CANNOT_LISTEN",
                     absl::StrCat(setting, ": cannot listen on ", host, ":", port, ": ", why));
  };
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  // "[::1]" is how an address of the sixth version is written before a port.
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  const std::string name = bracketed ? host.substr(1, host.size() - 2) : host;
  if (const int failed = getaddrinfo(name.c_str(), std::to_string(port).c_str(), &hints, &found); failed != 0) {
    return refuse(gai_strerror(failed));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, &freeaddrinfo);
  Listeners out;
  std::string why = "no address";
  for (addrinfo* each = found; each != nullptr; each = each->ai_next) {
    if (out.port_ != 0) {
      const in_port_t chosen = htons(static_cast<in_port_t>(out.port_));
      if (each->ai_family == AF_INET6) reinterpret_cast<sockaddr_in6*>(each->ai_addr)->sin6_port = chosen;
      if (each->ai_family == AF_INET) reinterpret_cast<sockaddr_in*>(each->ai_addr)->sin_port = chosen;
    }
    const int fd = OpenListener(*each, found->ai_next != nullptr);
    if (fd < 0) {
      why = std::strerror(errno);
      // A machine without the sixth version resolves names to it all the same; a port in use is an error.
      if (errno == EADDRINUSE) return refuse(why);
      continue;
    }
    out.fds_.push_back(fd);
    out.port_ = PortOf(fd);
  }
  if (out.fds_.empty()) return refuse(why);
  return out;
}

Listeners::Listeners(Listeners&& other) noexcept
    : fds_(std::exchange(other.fds_, {})), port_(std::exchange(other.port_, 0)) {}

Listeners& Listeners::operator=(Listeners&& other) noexcept {
  std::swap(fds_, other.fds_);
  std::swap(port_, other.port_);
  return *this;
}

Listeners::~Listeners() { Close(); }

int Listeners::Accept(int listener) {
  while (true) {
    const int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) return fd;
    // Without descriptors the connection stays in the backlog: asking again at once would only burn a core.
    const bool none_left = errno == EMFILE || errno == ENFILE;
    if (none_left) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    if (none_left || (errno != EINTR && errno != ECONNABORTED)) return -1;
  }
}

void Listeners::Close() {
  for (const int fd : fds_) close(fd);
  fds_.clear();
}

}  // namespace sage::server
