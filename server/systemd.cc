// The sd_notify protocol: datagrams to a unix socket whose name begins with '/' or, for the abstract kind, '@'.
#include "server/systemd.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "absl/strings/numbers.h"

namespace sage::server {
namespace {

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

SystemdNotifier::SystemdNotifier(std::string socket, const std::string& watchdog_usec, const std::string& watchdog_pid)
    : socket_(std::move(socket)) {
  int64_t usec = 0, pid = 0;
  if (!absl::SimpleAtoi(watchdog_usec, &usec) || usec <= 0) return;
  if (!watchdog_pid.empty() && (!absl::SimpleAtoi(watchdog_pid, &pid) || pid != getpid())) return;  // meant for another
  watchdog_ = absl::Microseconds(usec);
}

SystemdNotifier SystemdNotifier::FromEnvironment() {
  return SystemdNotifier(Variable("NOTIFY_SOCKET"), Variable("WATCHDOG_USEC"), Variable("WATCHDOG_PID"));
}

bool SystemdNotifier::Send(const std::string& state) const {
  sockaddr_un address = {};
  if (socket_.size() < 2 || socket_.size() >= sizeof(address.sun_path) || (socket_[0] != '/' && socket_[0] != '@')) {
    return false;
  }
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, socket_.data(), socket_.size());
  if (socket_[0] == '@') address.sun_path[0] = '\0';
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + socket_.size());
  const ssize_t sent = sendto(fd, state.data(), state.size(), MSG_NOSIGNAL | MSG_DONTWAIT,
                              reinterpret_cast<const sockaddr*>(&address), length);
  close(fd);
  return sent == static_cast<ssize_t>(state.size());
}

void SystemdNotifier::Beat(absl::Time now) {
  if (watchdog_ == absl::ZeroDuration() || now - last_beat_ < watchdog_ / 3) return;
  if (Send("WATCHDOG=1")) last_beat_ = now;
}

}  // namespace sage::server
