// Sets up cpp-httplib: a fixed number of threads, limits, probes and metrics.
#include "server/http/http_server.h"

#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "httplib.h"
#include "server/convert_status.h"
#include "server/daemon.h"
#include "server/http/routes.h"
#include "server/services/call.h"

namespace sage::server {
namespace {

constexpr size_t kMaxBody = 64 << 20;

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
      if (!caller.ok()) return SetError(caller.status(), response);
    }
    response.set_content(daemon.metrics().Text(), "text/plain; version=0.0.4; charset=utf-8");
  });
}

// Listens and answers the port, or a number below 1.
int Bind(httplib::Server& server, const ListenAddress& address) {
  if (!server.is_valid()) return -1;
  // Not the library's SO_REUSEPORT: a second daemon on this port must fail, not take half of the connections.
  int socket = -1;
  server.set_socket_options([&socket](int candidate) {
    const int yes = 1;
    setsockopt(candidate, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    socket = candidate;
  });
  int port = address.port;
  if (port == 0) {
    port = server.bind_to_any_port(address.host.c_str());
  } else if (!server.bind_to_port(address.host.c_str(), port)) {
    return -1;
  }
  // The library lets five connections wait; beyond that the kernel resets clients in a burst.
  constexpr int kWaitingConnections = 1024;
  return port > 0 && listen(socket, kWaitingConnections) == 0 ? port : -1;
}

// With client authorities, everything but the probes needs a verified certificate (a kubelet has none to show).
std::unique_ptr<httplib::Server> MakeTlsServer(Daemon& daemon) {
  std::unique_ptr<httplib::Server> server = std::make_unique<httplib::SSLServer>([&](SSL_CTX& context) {
    daemon.certificates().Attach(&context);
    return true;
  });
  if (!daemon.config().tls_client_ca.empty()) {
    server->set_pre_routing_handler([](const httplib::Request& request, httplib::Response& response) {
      if (request.path.rfind("/health", 0) == 0 || Certificates::PeerVerified(request.ssl)) {
        return httplib::Server::HandlerResponse::Unhandled;
      }
      SetError(MakeError(absl::StatusCode::kUnauthenticated, "CERTIFICATE_MISSING",
                         "a client certificate of a configured authority is needed"),
               response);
      return httplib::Server::HandlerResponse::Handled;
    });
  }
  return server;
}

}  // namespace

bool OpenCall(Call& call, const httplib::Request& request, bool admit, httplib::Response& response) {
  call.SetPeer(absl::StrCat(request.remote_addr, ":", request.remote_port));
  const absl::Status status =
      call.Open(request.get_header_value("Authorization"), request.get_header_value("X-Request-Id"),
                request.get_header_value("traceparent"), admit);
  response.set_header("traceparent", Traceparent(call.trace()));
  if (!call.request_id.empty() && call.request_id.find_first_of("\r\n") == std::string::npos) {
    response.set_header("X-Request-Id", call.request_id);
  }
  if (!status.ok()) SetError(status, response);
  return status.ok();
}

void SetJson(const Json& body, httplib::Response& response, int status) {
  response.status = status;
  response.set_content(DumpJson(body), "application/json");
}

void SetError(const absl::Status& status, httplib::Response& response) {
  SetJson(OpenAiError(status), response, HttpCode(status.code()));
  if (const int seconds = RetryAfterSeconds(status); seconds > 0) {
    response.set_header("Retry-After", std::to_string(seconds));
  }
  if (HttpCode(status.code()) == 401) response.set_header("WWW-Authenticate", "Bearer");
}

struct HttpServer::State {
  std::unique_ptr<httplib::Server> server;
  std::thread thread;
  std::atomic<bool> serving{true};
};

HttpServer::HttpServer() : state_(std::make_unique<State>()) {}
HttpServer::~HttpServer() { Stop(); }

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(Daemon& daemon) {
  const DaemonConfig& config = daemon.config();
  std::unique_ptr<HttpServer> out(new HttpServer());
  State& state = *out->state_;
  if (config.http_tls) {
    state.server = MakeTlsServer(daemon);
  } else {
    state.server = std::make_unique<httplib::Server>();
  }
  httplib::Server& server = *state.server;
  server.new_task_queue = [threads = config.http_threads] {
    return new httplib::ThreadPool(static_cast<size_t>(threads));
  };
  server.set_payload_max_length(kMaxBody);
  server.set_read_timeout(10, 0);
  server.set_write_timeout(30, 0);
  server.set_keep_alive_max_count(1000);
  server.set_keep_alive_timeout(2);  // an idle connection holds a thread
  server.set_tcp_nodelay(true);
  server.set_error_handler([](const httplib::Request& request, httplib::Response& response) {
    if (!response.body.empty()) return;
    const absl::StatusCode code = response.status == 404   ? absl::StatusCode::kNotFound
                                  : response.status == 413 ? absl::StatusCode::kInvalidArgument
                                  : response.status < 500  ? absl::StatusCode::kInvalidArgument
                                                           : absl::StatusCode::kInternal;
    const int status = response.status;
    SetJson(OpenAiError(MakeError(code, status == 404 ? "NO_SUCH_ROUTE" : "BAD_HTTP_REQUEST",
                                  absl::StrCat(request.method, " ", request.path, ": HTTP ", status))),
            response, status);
  });
  server.set_exception_handler([](const httplib::Request&, httplib::Response& response, auto&&) {
    SetError(MakeError(absl::StatusCode::kInternal, "EXCEPTION", "an exception ended the request"), response);
  });
  AddProbes(daemon, state.serving, server);
  AddOpenAiRoutes(daemon, server);
  AddManagementRoutes(daemon, server);
  ListenAddress bound = config.http_listen;
  bound.port = Bind(server, bound);
  if (bound.port <= 0) {
    return MakeError(absl::StatusCode::kUnavailable, "CANNOT_LISTEN",
                     absl::StrCat("http-listen: cannot listen on ", config.http_listen.ToString()));
  }
  state.thread = std::thread([&server] { server.listen_after_bind(); });
  while (!server.is_running()) std::this_thread::yield();
  out->address_ = bound.ToString();
  return out;
}

void HttpServer::SetServing(bool serving) { state_->serving = serving; }

void HttpServer::Stop() {
  if (!state_->thread.joinable()) return;
  state_->server->stop();
  state_->thread.join();
}

}  // namespace sage::server
