// OpenSSL's certificate callback chooses the pair per handshake, so that a reload touches no live connection.
#include "server/security/certificates.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <ctime>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "server/security/file_stamp.h"

namespace sage::server {

struct Certificate {
  std::vector<X509*> chain;  // the server's own first
  EVP_PKEY* key = nullptr;
  absl::Time not_after;
  ~Certificate() {
    for (X509* each : chain) X509_free(each);
    EVP_PKEY_free(key);
  }
};

namespace {

absl::Status Bad(const std::string& message) {
  ERR_clear_error();
  return MakeError(absl::StatusCode::kInvalidArgument, "BAD_CERTIFICATE", message);
}

struct BioCloser {
  void operator()(BIO* bio) const { BIO_free(bio); }
};

absl::StatusOr<std::shared_ptr<const Certificate>> Load(const std::string& chain_path, const std::string& key_path) {
  SAGE_ASSIGN_OR_RETURN(const std::string chain_text, ReadFile(chain_path, 1 << 20));
  SAGE_ASSIGN_OR_RETURN(const std::string key_text, ReadFile(key_path, 1 << 20));
  auto out = std::make_shared<Certificate>();
  const std::unique_ptr<BIO, BioCloser> chain(BIO_new_mem_buf(chain_text.data(), static_cast<int>(chain_text.size())));
  while (X509* each = PEM_read_bio_X509(chain.get(), nullptr, nullptr, nullptr)) out->chain.push_back(each);
  ERR_clear_error();
  if (out->chain.empty()) return Bad(absl::StrCat("tls-cert: holds no PEM certificate: ", chain_path));
  const std::unique_ptr<BIO, BioCloser> key(BIO_new_mem_buf(key_text.data(), static_cast<int>(key_text.size())));
  // An encrypted key must not stop the daemon at a prompt: an empty pass phrase is given instead.
  out->key = PEM_read_bio_PrivateKey(key.get(), nullptr, nullptr, const_cast<char*>(""));
  if (out->key == nullptr) return Bad(absl::StrCat("tls-key: holds no PEM private key: ", key_path));
  if (X509_check_private_key(out->chain[0], out->key) != 1) {
    return Bad(absl::StrCat("tls-cert and tls-key: do not belong together: ", chain_path, ", ", key_path));
  }
  std::tm end = {};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(out->chain[0]), &end) != 1) {
    return Bad(absl::StrCat("tls-cert: its end of validity cannot be read: ", chain_path));
  }
  out->not_after = absl::FromTM(end, absl::UTCTimeZone());
  return std::shared_ptr<const Certificate>(out);
}

}  // namespace

absl::Status Certificates::Open(const std::string& chain_path, const std::string& key_path) {
  chain_path_ = chain_path;
  key_path_ = key_path;
  return Reload().status();
}

absl::StatusOr<bool> Certificates::Reload() {
  if (!open()) return false;
  const std::string stamp = FileStamp(chain_path_) + "|" + FileStamp(key_path_);
  if (stamp == seen_) return false;
  seen_ = stamp;
  SAGE_ASSIGN_OR_RETURN(std::shared_ptr<const Certificate> fresh, Load(chain_path_, key_path_));
  std::lock_guard lock(mutex_);
  current_ = std::move(fresh);
  return true;
}

std::shared_ptr<const Certificate> Certificates::current() const {
  std::lock_guard lock(mutex_);
  return current_;
}

absl::Time Certificates::not_after() const {
  const std::shared_ptr<const Certificate> now = current();
  return now == nullptr ? absl::InfiniteFuture() : now->not_after;
}

int Certificates::Choose(SSL* ssl, void* self) {
  const std::shared_ptr<const Certificate> now = static_cast<const Certificates*>(self)->current();
  if (now == nullptr) return 0;
  STACK_OF(X509)* rest = sk_X509_new_null();
  for (size_t i = 1; i < now->chain.size(); ++i) sk_X509_push(rest, now->chain[i]);
  const int done = SSL_use_cert_and_key(ssl, now->chain[0], now->key, rest, 1);
  sk_X509_free(rest);
  return done;
}

void Certificates::Attach(SSL_CTX* context) const {
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_cert_cb(context, &Certificates::Choose, const_cast<Certificates*>(this));
}

absl::Status Certificates::AskForClients(SSL_CTX* context, const std::string& ca_path) {
  if (SSL_CTX_load_verify_locations(context, ca_path.c_str(), nullptr) != 1) {
    return Bad(absl::StrCat("tls-client-ca: holds no PEM certificate: ", ca_path));
  }
  SSL_CTX_set_client_CA_list(context, SSL_load_client_CA_file(ca_path.c_str()));
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER, nullptr);
  return absl::OkStatus();
}

bool Certificates::PeerVerified(const SSL* ssl) {
  if (ssl == nullptr || SSL_get_verify_result(ssl) != X509_V_OK) return false;
  X509* peer = SSL_get1_peer_certificate(ssl);
  X509_free(peer);
  return peer != nullptr;
}

}  // namespace sage::server
