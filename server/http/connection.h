// One connection of the HTTP port: bytes in without waiting, bytes out with patience, in the clear or over TLS.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "server/http/frame.h"

typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_st SSL;

namespace sage::server {

// Used by one thread at a time: the front's, or the worker's that answers its request.
class Connection {
 public:
  // Takes over `fd`, a connected socket that does not block; `tls` null = in the clear.
  Connection(int fd, SSL_CTX* tls);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  enum class Filled { kSome, kNothingYet, kEnded };
  // Reads at most `most` bytes of what is there into `in`.
  Filled Fill(size_t most);
  // Waits at most `patience` for each piece to be taken; zero = what does not fit at once is lost. False = gone.
  bool Send(std::string_view bytes, absl::Duration patience);
  // Waits until bytes can be written; false = the client closed the connection, or took nothing for `patience`.
  bool WaitWritable(absl::Duration patience) const;
  // Says that nothing more is written; what still comes may be read.
  void EndWriting();

  int fd() const { return fd_; }
  SSL* ssl() const { return ssl_.get(); }
  bool wants_write() const { return wants_write_; }  // the handshake, after kNothingYet

  struct Address {
    std::string ip;
    int port = 0;
  };
  const Address& remote() const { return remote_; }
  const Address& local() const { return local_; }

  // The front's own: what came and was not answered yet, and since when it waits for what.
  std::string in;
  FrameReader frame;
  absl::Time since;    // the first byte of the request, or the end of the last one
  size_t read_at = 0;  // of `in`, by the worker
  int answered = 0;
  bool continued = false, with_worker = false, closing = false;

 private:
  struct Freer {
    void operator()(SSL* ssl) const;
  };
  const int fd_;
  std::unique_ptr<SSL, Freer> ssl_;
  bool wants_write_ = false;
  Address remote_, local_;
};

}  // namespace sage::server
