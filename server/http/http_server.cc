// Puts the front, the library that routes, the probes and the metrics together.
#include "server/http/http_server.h"

#include <openssl/ssl.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "httplib.h"
#include "server/convert_status.h"
#include "server/daemon.h"
#include "server/http/front.h"
#include "server/http/routes.h"
#include "server/services/call.h"

namespace sage::server {
namespace {

constexpr absl::Duration kWritePatience = absl::Seconds(30);
constexpr size_t kMostPathTold = 200;
constexpr char kNoRoute[] =
    ": no such route; there is GET /v1/models, POST /v1/chat/completions, POST /v1/completions, /v1/management/..., "
    "GET /health and GET /metrics";

void AddProbes(Daemon& daemon, const std::atomic<bool>& serving, httplib::Server& server) {
  // Not live: a step hangs. A restart is all that helps then, and the orchestrator's liveness probe does it.
  server.Get("/health/live", [&daemon](const httplib::Request&, httplib::Response& response) {
    const bool live = daemon.healthy();
    SetJson({{"status", live ? "live" : "stalled"}}, response, live ? 200 : 503);
  });
  const auto ready = [&daemon, &serving](const httplib::Request&, httplib::Response& response) {
    const bool ok = serving && daemon.ready();
    SetJson({{"status", ok                              ? "ready"
                        : daemon.draining() || !serving ? "draining"
                                                        : "not_ready"}},
            response, ok ? 200 : 503);
  };
  server.Get("/health/ready", ready);
  server.Get("/health", ready);
  server.Get("/metrics", [&daemon](const httplib::Request& request, httplib::Response& response) {
    if (!daemon.config().open_metrics) {
      const auto caller = daemon.door().Check(request.get_header_value("Authorization"), Role::kRead);
      if (!caller.ok()) {  // scrapes that are answered are no calls: they would fill the log and their own figures
        Call call(daemon, "http", "Metrics");
        return RefuseCall(call, request, caller.status(), response);
      }
    }
    response.set_content(daemon.metrics().Text(), "text/plain; version=0.0.4; charset=utf-8");
  });
}

// What the library reads a request from and writes the answer to: the request is whole, the writer has patience.
class RequestStream final : public httplib::Stream {
 public:
  explicit RequestStream(Connection& connection) : connection_(connection) {}
  bool is_readable() const override { return connection_.read_at < connection_.frame.size(); }
  bool is_writable() const override { return connection_.WaitWritable(kWritePatience); }
  ssize_t read(char* to, size_t most) override {
    const size_t size = std::min(most, connection_.frame.size() - connection_.read_at);
    std::memcpy(to, connection_.in.data() + connection_.read_at, size);
    connection_.read_at += size;
    return static_cast<ssize_t>(size);
  }
  ssize_t write(const char* from, size_t size) override {
    return connection_.Send({from, size}, kWritePatience) ? static_cast<ssize_t>(size) : -1;
  }
  void get_remote_ip_and_port(std::string& ip, int& port) const override {
    ip = connection_.remote().ip;
    port = connection_.remote().port;
  }
  void get_local_ip_and_port(std::string& ip, int& port) const override {
    ip = connection_.local().ip;
    port = connection_.local().port;
  }
  socket_t socket() const override { return 0; }  // the library asks only whether select() could take it

 private:
  Connection& connection_;
};

// The library's routing and answering, without its sockets and threads.
class Router final : public httplib::Server {
 public:
  Router() { svr_sock_ = 0; }  // anything but INVALID_SOCKET: streams go on
  void EndStreams() { svr_sock_ = INVALID_SOCKET; }
  bool Answer(Connection& connection, bool last) {
    RequestStream stream(connection);
    bool closed = false;
    const bool answered =
        process_request(stream, last, closed, [&](httplib::Request& request) { request.ssl = connection.ssl(); });
    return answered && !closed && !last;
  }
};

struct ContextFreer {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
};
using TlsContext = std::unique_ptr<SSL_CTX, ContextFreer>;

TlsContext MakeTls(const Certificates& certificates) {
  TlsContext context(SSL_CTX_new(TLS_server_method()));
  SSL_CTX_set_options(context.get(), SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
  certificates.Attach(context.get());
  return context;
}

// With client authorities, everything but the probes needs a verified certificate (a kubelet has none to show).
void DemandCertificates(Daemon& daemon, httplib::Server& server) {
  server.set_pre_routing_handler([&daemon](const httplib::Request& request, httplib::Response& response) {
    if (request.path.rfind("/health", 0) == 0 || Certificates::PeerVerified(request.ssl)) {
      return httplib::Server::HandlerResponse::Unhandled;
    }
    RefuseUnrouted(daemon, request,
                   MakeError(absl::StatusCode::kUnauthenticated, "CERTIFICATE_MISSING",
                             "a client certificate of a configured authority is needed"),
                   response);
    return httplib::Server::HandlerResponse::Handled;
  });
}

// An answer from the front, which knows no routes. Written by hand: the connection ends with it.
std::string RefusalText(Daemon& daemon, const Connection& connection, const absl::Status& status, int code) {
  Call call(daemon, "http", "Unrouted");
  call.SetPeer(absl::StrCat(connection.remote().ip, ":", connection.remote().port));
  call.SetStatus(status);
  const std::string body = DumpJson(OpenAiError(status));
  std::string out =
      absl::StrCat("HTTP/1.1 ", code, " \r\nContent-Type: application/json\r\nContent-Length: ", body.size(),
                   "\r\nConnection: close\r\n");
  if (const int64_t seconds = RetryAfterSeconds(status); seconds > 0)
    absl::StrAppend(&out, "Retry-After: ", seconds, "\r\n");
  return absl::StrCat(out, "\r\n", body);
}

void AddErrors(Daemon& daemon, httplib::Server& server) {
  server.set_error_handler([&daemon](const httplib::Request& request, httplib::Response& response) {
    if (!response.body.empty()) return;
    const absl::StatusCode code = response.status == 404  ? absl::StatusCode::kNotFound
                                  : response.status < 500 ? absl::StatusCode::kInvalidArgument
                                                          : absl::StatusCode::kInternal;
    const int status = response.status;
    RefuseUnrouted(daemon, request,
                   MakeError(code, status == 404 ? "NO_SUCH_ROUTE" : "BAD_HTTP_REQUEST",
                             absl::StrCat(request.method, " ", request.path.substr(0, kMostPathTold),
                                          status == 404 ? std::string(kNoRoute) : absl::StrCat(": HTTP ", status))),
                   response);
    response.status = status;
  });
  server.set_exception_handler([](const httplib::Request&, httplib::Response& response, auto&&) {
    SetError(MakeError(absl::StatusCode::kInternal, "EXCEPTION", "an exception ended the request"), response);
  });
}

}  // namespace

bool OpenCall(Call& call, const httplib::Request& request, bool admit, httplib::Response& response) {
  call.SetPeer(absl::StrCat(request.remote_addr, ":", request.remote_port));
  call.SetCertificate(Certificates::PeerName(request.ssl));
  const absl::Status status =
      call.Open(request.get_header_value("Authorization"), request.get_header_value("X-Request-Id"),
                {request.get_header_value("traceparent"), request.get_header_value("tracestate")}, admit);
  response.set_header("traceparent", Traceparent(call.trace()));
  if (!call.request_id.empty() && call.request_id.find_first_of("\r\n") == std::string::npos) {
    response.set_header("X-Request-Id", call.request_id);
  }
  if (!status.ok()) SetError(status, response);
  return status.ok();
}

void RefuseCall(Call& call, const httplib::Request& request, const absl::Status& status, httplib::Response& response) {
  call.SetPeer(absl::StrCat(request.remote_addr, ":", request.remote_port));
  call.SetCertificate(Certificates::PeerName(request.ssl));
  call.SetStatus(status);
  SetError(status, response);
}

void RefuseUnrouted(Daemon& daemon, const httplib::Request& request, const absl::Status& status,
                    httplib::Response& response) {
  Call call(daemon, "http", "Unrouted");
  RefuseCall(call, request, status, response);
}

void SetJson(const Json& body, httplib::Response& response, int status) {
  response.status = status;
  response.set_content(DumpJson(body), "application/json");
}

void SetError(const absl::Status& status, httplib::Response& response) {
  SetJson(OpenAiError(status), response, HttpCode(status.code()));
  if (const int64_t seconds = RetryAfterSeconds(status); seconds > 0) {
    response.set_header("Retry-After", std::to_string(seconds));
  }
  if (HttpCode(status.code()) == 401) response.set_header("WWW-Authenticate", "Bearer");
}

struct HttpServer::State {
  TlsContext tls;
  Router router;
  std::unique_ptr<HttpFront> front;
  std::atomic<bool> serving{true};
};

HttpServer::HttpServer() : state_(std::make_unique<State>()) {}
HttpServer::~HttpServer() { Stop(); }

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(Daemon& daemon) {
  const DaemonConfig& config = daemon.config();
  std::unique_ptr<HttpServer> out(new HttpServer());
  State& state = *out->state_;
  if (config.http_tls) {
    state.tls = MakeTls(daemon.certificates());
    if (!config.tls_client_ca.empty()) DemandCertificates(daemon, state.router);
  }
  state.router.set_payload_max_length(FrameReader::kMostBody);
  state.router.set_keep_alive_max_count(1000);
  state.router.set_keep_alive_timeout(60);  // what answers say; the front does it
  AddErrors(daemon, state.router);
  AddProbes(daemon, state.serving, state.router);
  AddOpenAiRoutes(daemon, state.router);
  AddManagementRoutes(daemon, state.router);
  HttpFront::Options options;
  options.host = config.http_listen.host;
  options.port = config.http_listen.port;
  options.threads = config.http_threads;
  options.most_connections = config.max_http_connections;
  options.tls = state.tls.get();
  SAGE_ASSIGN_OR_RETURN(state.front, HttpFront::Listen(options, daemon.metrics()));
  ListenAddress bound = config.http_listen;
  bound.port = state.front->port();
  out->address_ = bound.ToString();
  state.front->Start([&state](Connection& connection, bool last) { return state.router.Answer(connection, last); },
                     [&daemon](const Connection& connection, const absl::Status& status, int code) {
                       return RefusalText(daemon, connection, status, code);
                     });
  return out;
}

void HttpServer::SetServing(bool serving) { state_->serving = serving; }

void HttpServer::Stop() {
  state_->router.EndStreams();
  if (state_->front) state_->front->Stop();
}

}  // namespace sage::server
