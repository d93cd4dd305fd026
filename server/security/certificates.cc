// OpenSSL's certificate callback chooses per handshake, so that a reload touches no live connection.
#include "server/security/certificates.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "server/security/file_stamp.h"

namespace sage::server {

struct Certificate {
  std::vector<X509*> chain;  // the server's own first
  EVP_PKEY* key = nullptr;
  X509_STORE* authorities = nullptr;  // null = clients are not asked
  absl::Time not_before, not_after;
  absl::Time authorities_end = absl::InfiniteFuture();     // of the first that ends
  absl::Time authorities_latest = absl::InfiniteFuture();  // of the last
  std::string identity_pem, authorities_pem;
  ~Certificate() {
    for (X509* each : chain) X509_free(each);
    EVP_PKEY_free(key);
    X509_STORE_free(authorities);
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

std::vector<X509*> ReadChain(const std::string& text) {
  std::vector<X509*> out;
  const std::unique_ptr<BIO, BioCloser> bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
  while (X509* each = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) out.push_back(each);
  ERR_clear_error();
  return out;
}

absl::Time ToTime(const ASN1_TIME* time) {
  std::tm parts = {};
  return ASN1_TIME_to_tm(time, &parts) == 1 ? absl::FromTM(parts, absl::UTCTimeZone()) : absl::InfinitePast();
}

absl::Status Invalid(const char* reason, const std::string& what, absl::Time when) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason,
                   absl::StrCat(what, absl::FormatTime(" %Y-%m-%dT%H:%M:%SZ", when, absl::UTCTimeZone())));
}

absl::Status CheckTimes(const Certificate& certificate, absl::Time now) {
  if (now > certificate.not_after) return Invalid("CERTIFICATE_EXPIRED", "tls-cert: ended", certificate.not_after);
  if (now > certificate.authorities_latest) {
    return Invalid("CERTIFICATE_EXPIRED", "tls-client-ca: its last authority ended", certificate.authorities_latest);
  }
  if (now < certificate.not_before) {
    return Invalid("CERTIFICATE_NOT_YET_VALID", "tls-cert: begins", certificate.not_before);
  }
  return absl::OkStatus();
}

absl::Status LoadAuthorities(const std::string& path, Certificate& out) {
  SAGE_ASSIGN_OR_RETURN(out.authorities_pem, ReadFile(path, 1 << 20));
  const std::vector<X509*> all = ReadChain(out.authorities_pem);
  out.authorities = X509_STORE_new();
  if (!all.empty()) out.authorities_latest = absl::InfinitePast();
  for (X509* each : all) {
    const absl::Time end = ToTime(X509_get0_notAfter(each));
    out.authorities_end = std::min(out.authorities_end, end);
    out.authorities_latest = std::max(out.authorities_latest, end);
    X509_STORE_add_cert(out.authorities, each);
    X509_free(each);
  }
  ERR_clear_error();
  return all.empty() ? Bad(absl::StrCat("tls-client-ca: holds no PEM certificate: ", path)) : absl::OkStatus();
}

// A new file in memory with `text`, put under the descriptor `slot` (made when -1) in one step.
absl::Status Publish(const std::string& text, int& slot) {
  const int fresh = memfd_create("sagequantd-tls", MFD_CLOEXEC);
  const bool written = fresh >= 0 && write(fresh, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  const bool placed = written && (slot < 0 || dup3(fresh, slot, O_CLOEXEC) == slot);
  if (placed && slot < 0) {
    slot = fresh;
    return absl::OkStatus();
  }
  if (fresh >= 0) close(fresh);
  return placed ? absl::OkStatus()
                : MakeError(absl::StatusCode::kInternal, "NO_MEMORY_FILE", "tls: a file in memory cannot be made");
}

absl::StatusOr<std::shared_ptr<const Certificate>> Load(const std::string& chain_path, const std::string& key_path,
                                                        const std::string& ca_path) {
  SAGE_ASSIGN_OR_RETURN(const std::string chain_text, ReadFile(chain_path, 1 << 20));
  SAGE_ASSIGN_OR_RETURN(const std::string key_text, ReadFile(key_path, 1 << 20));
  auto out = std::make_shared<Certificate>();
  out->chain = ReadChain(chain_text);
  if (out->chain.empty()) return Bad(absl::StrCat("tls-cert: holds no PEM certificate: ", chain_path));
  const std::unique_ptr<BIO, BioCloser> key(BIO_new_mem_buf(key_text.data(), static_cast<int>(key_text.size())));
  // An encrypted key must not stop the daemon at a prompt: an empty pass phrase is given instead.
  out->key = PEM_read_bio_PrivateKey(key.get(), nullptr, nullptr, const_cast<char*>(""));
  if (out->key == nullptr) return Bad(absl::StrCat("tls-key: holds no PEM private key: ", key_path));
  if (X509_check_private_key(out->chain[0], out->key) != 1) {
    return Bad(absl::StrCat("tls-cert and tls-key: do not belong together: ", chain_path, ", ", key_path));
  }
  out->not_before = ToTime(X509_get0_notBefore(out->chain[0]));
  out->not_after = ToTime(X509_get0_notAfter(out->chain[0]));
  if (out->not_before == absl::InfinitePast() || out->not_after == absl::InfinitePast()) {
    return Bad(absl::StrCat("tls-cert: its time of validity cannot be read: ", chain_path));
  }
  out->identity_pem = absl::StrCat(key_text, "\n", chain_text);
  if (!ca_path.empty()) SAGE_RETURN_IF_ERROR(LoadAuthorities(ca_path, *out));
  return std::shared_ptr<const Certificate>(out);
}

}  // namespace

Certificates::~Certificates() {
  for (const int fd : {identity_, authorities_}) {
    if (fd >= 0) close(fd);
  }
}

absl::Status Certificates::Open(const std::string& chain_path, const std::string& key_path,
                                const std::string& ca_path) {
  chain_path_ = chain_path;
  key_path_ = key_path;
  ca_path_ = ca_path;
  return Reload().status();
}

absl::StatusOr<bool> Certificates::Reload() {
  if (!open()) return false;
  const std::string stamp = FileStamp(chain_path_) + "|" + FileStamp(key_path_) + "|" + FileStamp(ca_path_);
  const absl::Time now = absl::Now();
  if (stamp == seen_ && now < retry_at_) return false;
  retry_at_ = absl::InfiniteFuture();
  absl::StatusOr<std::shared_ptr<const Certificate>> loaded = Load(chain_path_, key_path_, ca_path_);
  if (loaded.ok() && current() != nullptr) {  // at the start there is nothing better to stay with
    const std::shared_ptr<const Certificate> fresh = *loaded;
    if (const absl::Status valid = CheckTimes(*fresh, now); !valid.ok()) {
      loaded = valid;
      if (now < fresh->not_before) retry_at_ = fresh->not_before;
    }
  }
  if (!loaded.ok() && current() != nullptr && stamp != doubted_) {
    doubted_ = stamp;
    return false;
  }
  seen_ = stamp;
  if (!loaded.ok()) return loaded.status();
  const std::shared_ptr<const Certificate> fresh = *std::move(loaded);
  SAGE_RETURN_IF_ERROR(Publish(fresh->identity_pem, identity_));
  if (fresh->authorities != nullptr) SAGE_RETURN_IF_ERROR(Publish(fresh->authorities_pem, authorities_));
  std::lock_guard lock(mutex_);
  current_ = fresh;
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

absl::Time Certificates::authorities_end() const {
  const std::shared_ptr<const Certificate> now = current();
  return now == nullptr ? absl::InfiniteFuture() : now->authorities_end;
}

absl::Status Certificates::CheckValidity(absl::Time now) const {
  const std::shared_ptr<const Certificate> held = current();
  return held == nullptr ? absl::OkStatus() : CheckTimes(*held, now);
}

int Certificates::Choose(SSL* ssl, void* self) {
  const std::shared_ptr<const Certificate> now = static_cast<const Certificates*>(self)->current();
  if (now == nullptr) return 0;
  STACK_OF(X509)* rest = sk_X509_new_null();
  for (size_t i = 1; i < now->chain.size(); ++i) sk_X509_push(rest, now->chain[i]);
  const int done = SSL_use_cert_and_key(ssl, now->chain[0], now->key, rest, 1);
  sk_X509_free(rest);
  if (now->authorities != nullptr) {
    SSL_set1_verify_cert_store(ssl, now->authorities);
    SSL_set_verify(ssl, SSL_VERIFY_PEER, nullptr);
  }
  return done;
}

void Certificates::Attach(SSL_CTX* context) const {
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  static const unsigned char kSessions[] = "sagequantd";  // resumed sessions keep what was verified
  SSL_CTX_set_session_id_context(context, kSessions, sizeof(kSessions) - 1);
  SSL_CTX_set_cert_cb(context, &Certificates::Choose, const_cast<Certificates*>(this));
}

std::string Certificates::identity_path() const {
  return identity_ < 0 ? "" : absl::StrCat("/proc/self/fd/", identity_);
}
std::string Certificates::authorities_path() const {
  return authorities_ < 0 ? "" : absl::StrCat("/proc/self/fd/", authorities_);
}

bool Certificates::PeerVerified(const SSL* ssl) {
  if (ssl == nullptr || SSL_get_verify_result(ssl) != X509_V_OK) return false;
  X509* peer = SSL_get1_peer_certificate(ssl);
  X509_free(peer);
  return peer != nullptr;
}

std::string Certificates::PeerName(const SSL* ssl) {
  if (!PeerVerified(ssl)) return "";
  const std::unique_ptr<X509, void (*)(X509*)> peer(SSL_get1_peer_certificate(ssl), &X509_free);
  char common[256] = {};
  if (X509_NAME_get_text_by_NID(X509_get_subject_name(peer.get()), NID_commonName, common, sizeof common) > 0) {
    return common;
  }
  const std::unique_ptr<GENERAL_NAMES, void (*)(GENERAL_NAMES*)> names(
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(peer.get(), NID_subject_alt_name, nullptr, nullptr)),
      &GENERAL_NAMES_free);
  for (int i = 0; names != nullptr && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_DNS && name->type != GEN_URI && name->type != GEN_EMAIL) continue;
    const ASN1_IA5STRING* text = name->d.ia5;
    return std::string(reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)),
                       static_cast<size_t>(ASN1_STRING_length(text)));
  }
  return "";
}

}  // namespace sage::server
