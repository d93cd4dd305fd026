// The certificate of both ports and the authorities of clients, checked and taken up again when their files change.
//
// gRPC can only watch files, and ends the process when it reads a half-written one. It is therefore shown files in
// memory that hold what was checked here, each replaced as a whole.
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
  Certificates() = default;
  ~Certificates();
  Certificates(const Certificates&) = delete;
  Certificates& operator=(const Certificates&) = delete;

  // Reads the files (`ca_path` "" = clients show no certificate). INVALID_ARGUMENT (BAD_CERTIFICATE) names the file and
  // what is wrong with it.
  absl::Status Open(const std::string& chain_path, const std::string& key_path, const std::string& ca_path);
  // Reads them again when one changed; a set that is bad twice is reported (files are replaced one after the other) and
  // the old one stays, also where the new one is not valid at this time. One that is not valid yet is tried again once
  // it is. True when it was taken up.
  absl::StatusOr<bool> Reload();
  bool open() const { return !chain_path_.empty(); }
  // When the first certificate of the chain ends; the infinite future without one.
  absl::Time not_after() const;
  // When the first of the client authorities ends; the infinite future without any.
  absl::Time authorities_end() const;
  // INVALID_ARGUMENT (CERTIFICATE_EXPIRED, CERTIFICATE_NOT_YET_VALID) when what is current does not serve at `now`.
  absl::Status CheckValidity(absl::Time now) const;

  // Every later handshake of `context` uses what is current then. Client certificates are verified when they are shown;
  // who must show one is decided per request. This object must outlive the context.
  void Attach(SSL_CTX* context) const;
  // Key and chain in one PEM, and the authorities' PEM, as paths of files in memory ("" before Open or without any).
  std::string identity_path() const;
  std::string authorities_path() const;
  // Whether the peer of `ssl` showed a certificate that was verified.
  static bool PeerVerified(const SSL* ssl);
  // Who the verified peer of `ssl` is: its common name, else its first alternative name; "" without a certificate.
  static std::string PeerName(const SSL* ssl);

 private:
  std::shared_ptr<const Certificate> current() const;
  static int Choose(SSL* ssl, void* self);

  std::string chain_path_, key_path_, ca_path_, seen_, doubted_;
  absl::Time retry_at_ = absl::InfiniteFuture();  // when the refused files begin to be valid
  int identity_ = -1, authorities_ = -1;          // descriptors of the files in memory
  mutable std::mutex mutex_;
  std::shared_ptr<const Certificate> current_;
};

}  // namespace sage::server
