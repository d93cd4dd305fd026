// The certificate of the HTTP port, taken up again when its files change, and when it expires (gRPC watches the same
// files by itself).
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_st SSL;

namespace sage::server {

// A chain and its key that belong together.
struct Certificate;

class Certificates {
 public:
  // Reads both files. INVALID_ARGUMENT (BAD_CERTIFICATE) names the file and what is wrong with it.
  absl::Status Open(const std::string& chain_path, const std::string& key_path);
  // Reads them again when one changed; a bad pair is reported and the old one stays. True when it was taken up.
  absl::StatusOr<bool> Reload();
  bool open() const { return !chain_path_.empty(); }
  // When the first certificate of the chain ends; the infinite future without one.
  absl::Time not_after() const;

  // Every later handshake of `context` uses the pair that is current then. This object must outlive the context.
  void Attach(SSL_CTX* context) const;
  // Client certificates signed by an authority in `ca_path` are verified when they are shown; who must show one is
  // decided per request.
  static absl::Status AskForClients(SSL_CTX* context, const std::string& ca_path);
  // Whether the peer of `ssl` showed a certificate that was verified.
  static bool PeerVerified(const SSL* ssl);

 private:
  std::shared_ptr<const Certificate> current() const;
  static int Choose(SSL* ssl, void* self);

  std::string chain_path_, key_path_, seen_;
  mutable std::mutex mutex_;
  std::shared_ptr<const Certificate> current_;
};

}  // namespace sage::server
