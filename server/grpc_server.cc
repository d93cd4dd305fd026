// Builds the gRPC server.
#include "server/grpc_server.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/impl/service_type.h"
#include "grpcpp/security/tls_certificate_provider.h"
#include "grpcpp/security/tls_credentials_options.h"
#include "server/connection_gate.h"
#include "server/daemon.h"
#include "server/services/services.h"

namespace sage::server {
namespace {

constexpr int kMaxReceiveBytes = 64 << 20;
constexpr const char* kServiceNames[] = {
    "",
    "sage.quant.v1.QuantizationService",
    "sage.quant.v1.ArtifactService",
    "sage.quant.v1.EngineService",
    "sage.quant.v1.GenerationService",
    "sage.quant.v1.ReportService",
    "sage.quant.v1.OperationService",
    "inference.GRPCInferenceService",
};

// gRPC of 2024 and later: each provider is named for what it provides, and providing is watching.
template <typename Options, typename Provider>
requires requires(Options& options, Provider provider) { options.set_identity_certificate_provider(provider); }
Options WatchCertificates(const Provider& provider, bool authorities) {
  Options options = *Options::Create(provider);
  if (authorities) options.set_root_certificate_provider(provider);
  return options;
}

// gRPC before that, Debian 12's 1.51 among them.
template <typename Options, typename Provider>
Options WatchCertificates(const Provider& provider, bool authorities) {
  Options options(provider);
  options.watch_identity_key_cert_pairs();
  if (authorities) options.watch_root_certs();
  return options;
}

// The provider reads its files again every second, so that a renewed certificate needs no restart. They lie in memory
// and hold what Certificates has checked.
std::shared_ptr<grpc::ServerCredentials> Credentials(const Certificates& certificates) {
  if (!certificates.open()) return grpc::InsecureServerCredentials();
  constexpr unsigned kRefreshSeconds = 1;
  const bool authorities = !certificates.authorities_path().empty();
  const auto provider = std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
      certificates.identity_path(), certificates.identity_path(), certificates.authorities_path(), kRefreshSeconds);
  auto options = WatchCertificates<grpc::experimental::TlsServerCredentialsOptions>(provider, authorities);
  options.set_check_call_host(false);
  options.set_cert_request_type(authorities ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                            : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  return grpc::experimental::TlsServerCredentials(options);
}

void SetLimits(const DaemonConfig& config, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, config.max_streams);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 16 << 10);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // A long prefill sends nothing for a while; clients may ping every 10 s meanwhile.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000);
}

}  // namespace

struct GrpcServer::State {
  std::vector<std::unique_ptr<grpc::Service>> services;  // outlive the server
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor;
  std::unique_ptr<ConnectionGate> gate;  // null for a unix socket, which the file's permissions guard
  std::unique_ptr<grpc::Server> server;
};

GrpcServer::GrpcServer() : state_(std::make_unique<State>()) {}
GrpcServer::~GrpcServer() {
  if (state_->server) Shutdown(absl::Now());
}

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(Daemon& daemon) {
  const DaemonConfig& config = daemon.config();
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  std::unique_ptr<GrpcServer> out(new GrpcServer());
  auto& services = out->state_->services;
  services.push_back(MakeQuantizationService(daemon));
  services.push_back(MakeArtifactService(daemon));
  services.push_back(MakeEngineService(daemon));
  services.push_back(MakeGenerationService(daemon));
  services.push_back(MakeReportService(daemon));
  services.push_back(MakeOperationService(daemon));
  services.push_back(MakeInferenceService(daemon));
  grpc::ServerBuilder builder;
  SetLimits(config, builder);
  ListenAddress bound = config.grpc_listen;
  SAGE_RETURN_IF_ERROR(out->Listen(daemon, builder, bound));
  for (const auto& service : services) builder.RegisterService(service.get());
  State& state = *out->state_;
  state.server = builder.BuildAndStart();
  if (state.server == nullptr || (!state.gate && bound.port == 0)) {
    return MakeError(absl::StatusCode::kUnavailable, "CANNOT_LISTEN",
                     absl::StrCat("grpc-listen: cannot listen on ", config.grpc_listen.ToString()));
  }
  out->SetServing(false);
  if (state.gate) {
    state.gate->Start([&acceptor = *state.acceptor](int listener, int fd) {
      grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
      connection.listener_fd = listener;
      connection.fd = fd;
      acceptor.HandleNewConnection(&connection);
    });
  }
  out->address_ = bound.ToString();
  return out;
}

absl::Status GrpcServer::Listen(Daemon& daemon, grpc::ServerBuilder& builder, ListenAddress& address) {
  const auto credentials = Credentials(daemon.certificates());
  if (!address.unix_path.empty()) {
    builder.AddListeningPort(address.ToString(), credentials, &address.port);
    return absl::OkStatus();
  }
  SAGE_ASSIGN_OR_RETURN(state_->gate, ConnectionGate::Listen(address.host, address.port,
                                                             daemon.config().max_connections, daemon.metrics()));
  address.port = state_->gate->port();
  using Type = grpc::ServerBuilder::experimental_type::ExternalConnectionType;
  state_->acceptor = builder.experimental().AddExternalConnectionAcceptor(Type::FROM_FD, credentials);
  return absl::OkStatus();
}

void GrpcServer::SetServing(bool serving) {
  auto* health = state_->server->GetHealthCheckService();
  if (health == nullptr) return;
  for (const char* name : kServiceNames) health->SetServingStatus(name, serving);
}

void GrpcServer::Shutdown(absl::Time deadline) {
  if (state_->server == nullptr) return;
  if (state_->gate) state_->gate->Stop();
  state_->server->Shutdown(absl::ToChronoTime(deadline));
  state_->server->Wait();
  state_->server = nullptr;
}

}  // namespace sage::server
