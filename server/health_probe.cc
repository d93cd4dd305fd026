// The probe speaks to this very machine, so it does not verify the certificate.
#include "server/health_probe.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "httplib.h"

namespace sage::server {

absl::Status ProbeHealth(const DaemonConfig& config) {
  const std::string& asked = config.http_listen.host;
  const std::string host = asked == "0.0.0.0" ? "127.0.0.1" : asked == "::" ? "::1" : asked;
  std::unique_ptr<httplib::ClientImpl> client;
  if (config.http_tls) {
    auto tls = std::make_unique<httplib::SSLClient>(host, config.http_listen.port);
    tls->enable_server_certificate_verification(false);
    client = std::move(tls);
  } else {
    client = std::make_unique<httplib::ClientImpl>(host, config.http_listen.port);
  }
  client->set_connection_timeout(2, 0);
  client->set_read_timeout(2, 0);
  const auto answer = client->Get("/health/live");
  if (answer && answer->status == 200) return absl::OkStatus();
  return MakeError(absl::StatusCode::kUnavailable, "NOT_LIVE",
                   absl::StrCat(config.http_listen.ToString(), "/health/live: ",
                                answer ? absl::StrCat("HTTP ", answer->status) : httplib::to_string(answer.error())));
}

}  // namespace sage::server
