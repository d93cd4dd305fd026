// Finds the connection once, then asks the kernel.
#include "server/http/peer.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstdlib>
#include <string>

#include "httplib.h"

namespace sage::server {
namespace {

struct End {
  std::string address;
  int port = 0;
  bool operator==(const End& other) const = default;
};

End ReadEnd(int socket, int (*read)(int, sockaddr*, socklen_t*)) {
  sockaddr_storage storage{};
  socklen_t size = sizeof(storage);
  if (read(socket, reinterpret_cast<sockaddr*>(&storage), &size) != 0) return {};
  char text[INET6_ADDRSTRLEN] = {};
  if (storage.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(storage);
    inet_ntop(AF_INET, &v4.sin_addr, text, sizeof(text));
    return {text, ntohs(v4.sin_port)};
  }
  if (storage.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(storage);
    inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text));
    return {text, ntohs(v6.sin6_port)};
  }
  return {};
}

}  // namespace

PeerWatch::PeerWatch(const httplib::Request& request) {
  const End remote = {request.remote_addr, request.remote_port}, local = {request.local_addr, request.local_port};
  DIR* folder = opendir("/proc/self/fd");
  if (folder == nullptr) return;
  while (const dirent* entry = readdir(folder)) {
    const int descriptor = std::atoi(entry->d_name);
    if (descriptor <= 2) continue;
    if (ReadEnd(descriptor, getpeername) == remote && ReadEnd(descriptor, getsockname) == local) {
      socket_ = descriptor;
      break;
    }
  }
  closedir(folder);
}

bool PeerWatch::gone() const {
  if (socket_ < 0) return false;
  pollfd state = {socket_, POLLRDHUP, 0};
  return poll(&state, 1, 0) > 0 && (state.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

}  // namespace sage::server
