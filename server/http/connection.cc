// recv and send, or OpenSSL over the same socket.
#include "server/http/connection.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace sage::server {
namespace {

constexpr int kUserTimeoutMs = 20000;  // unacknowledged data ends a connection

Connection::Address ReadAddress(int fd, int (*read)(int, sockaddr*, socklen_t*)) {
  sockaddr_storage storage = {};
  socklen_t size = sizeof storage;
  if (read(fd, reinterpret_cast<sockaddr*>(&storage), &size) != 0) return {};
  char text[INET6_ADDRSTRLEN] = {};
  if (storage.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(storage);
    inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof text);
    return {text, ntohs(v6.sin6_port)};
  }
  const auto& v4 = reinterpret_cast<const sockaddr_in&>(storage);
  inet_ntop(AF_INET, &v4.sin_addr, text, sizeof text);
  return {text, ntohs(v4.sin_port)};
}

bool WaitFor(int fd, short events, absl::Duration patience) {
  pollfd state = {fd, events, 0};
  return poll(&state, 1, static_cast<int>(absl::ToInt64Milliseconds(patience))) > 0;
}

}  // namespace

void Connection::Freer::operator()(SSL* ssl) const { SSL_free(ssl); }

Connection::Connection(int fd, SSL_CTX* tls)
    : since(absl::Now()), fd_(fd), remote_(ReadAddress(fd, getpeername)), local_(ReadAddress(fd, getsockname)) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &kUserTimeoutMs, sizeof kUserTimeoutMs);
  if (tls == nullptr) return;
  ssl_.reset(SSL_new(tls));
  SSL_set_fd(ssl_.get(), fd);
  SSL_set_accept_state(ssl_.get());
  SSL_set_mode(ssl_.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
}

Connection::~Connection() {
  if (ssl_ != nullptr && SSL_is_init_finished(ssl_.get())) SSL_shutdown(ssl_.get());
  ERR_clear_error();
  ssl_.reset();
  close(fd_);
}

Connection::Filled Connection::Fill(size_t most) {
  const size_t had = in.size();
  in.resize(had + most);
  wants_write_ = false;
  ssize_t got = 0;
  bool later = false;
  if (ssl_ != nullptr) {
    got = SSL_read(ssl_.get(), in.data() + had, static_cast<int>(most));
    const int error = got > 0 ? SSL_ERROR_NONE : SSL_get_error(ssl_.get(), static_cast<int>(got));
    wants_write_ = error == SSL_ERROR_WANT_WRITE;
    later = wants_write_ || error == SSL_ERROR_WANT_READ;
    ERR_clear_error();
  } else {
    got = recv(fd_, in.data() + had, most, MSG_DONTWAIT);
    later = got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
  }
  in.resize(had + static_cast<size_t>(std::max<ssize_t>(got, 0)));
  if (got > 0) return Filled::kSome;
  return later ? Filled::kNothingYet : Filled::kEnded;
}

bool Connection::Send(std::string_view bytes, absl::Duration patience) {
  if (ssl_ != nullptr && !SSL_is_init_finished(ssl_.get())) return false;
  while (!bytes.empty()) {
    ssize_t sent = 0;
    short wait = 0;
    if (ssl_ != nullptr) {
      sent = SSL_write(ssl_.get(), bytes.data(), static_cast<int>(std::min<size_t>(bytes.size(), 1 << 30)));
      const int error = sent > 0 ? SSL_ERROR_NONE : SSL_get_error(ssl_.get(), static_cast<int>(sent));
      wait = error == SSL_ERROR_WANT_WRITE ? POLLOUT : error == SSL_ERROR_WANT_READ ? POLLIN : 0;
      ERR_clear_error();
    } else {
      sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && errno == EINTR) continue;
      wait = sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? POLLOUT : 0;
    }
    if (sent > 0) {
      bytes.remove_prefix(static_cast<size_t>(sent));
    } else if (wait == 0 || patience <= absl::ZeroDuration() || !WaitFor(fd_, wait, patience)) {
      return false;
    }
  }
  return true;
}

bool Connection::WaitWritable(absl::Duration patience) const {
  pollfd state = {fd_, POLLOUT | POLLRDHUP, 0};
  return poll(&state, 1, static_cast<int>(absl::ToInt64Milliseconds(patience))) > 0 &&
         (state.revents & (POLLRDHUP | POLLHUP | POLLERR)) == 0;
}

void Connection::EndWriting() {
  if (ssl_ != nullptr && SSL_is_init_finished(ssl_.get())) SSL_shutdown(ssl_.get());
  ERR_clear_error();
  shutdown(fd_, SHUT_WR);
}

}  // namespace sage::server
