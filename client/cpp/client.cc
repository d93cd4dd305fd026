// Channel set-up, error details, and the two loops every client writes: reading a generation and following an
// operation.
#include "sagequant/client.h"

#include <chrono>
#include <fstream>
#include <iterator>

#include "google/rpc/error_details.pb.h"

namespace sage::client {
namespace {

namespace v1 = quant::v1;

std::optional<std::string> ReadWhole(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(in), {});
}

std::shared_ptr<grpc::ChannelCredentials> Credentials(const Options& options, Error* error) {
  if (options.ca.empty() && options.cert.empty() && options.key.empty()) return grpc::InsecureChannelCredentials();
  if (options.cert.empty() != options.key.empty()) {
    *error = {"INVALID_ARGUMENT", "CREDENTIALS", "cert and key: both or neither", {}};
    return nullptr;
  }
  grpc::SslCredentialsOptions tls;
  const std::pair<const std::string*, std::string*> files[] = {
      {&options.ca, &tls.pem_root_certs}, {&options.cert, &tls.pem_cert_chain}, {&options.key, &tls.pem_private_key}};
  for (const auto& [path, target] : files) {
    if (path->empty()) continue;
    const auto content = ReadWhole(*path);
    if (!content) {
      *error = {"INVALID_ARGUMENT", "CREDENTIALS", "cannot read " + *path, {}};
      return nullptr;
    }
    *target = *content;
  }
  return grpc::SslCredentials(tls);
}

template <typename Reader>
std::optional<Error> ReadUpdates(grpc::ClientContext* context, Reader reader, const Client::OnUpdate& each) {
  v1::GenerationUpdate update;
  bool wanted = true;
  while (reader->Read(&update)) {
    wanted = each(update);
    if (!wanted) break;
  }
  if (!wanted) context->TryCancel();
  const grpc::Status status = reader->Finish();
  if (status.ok() || !wanted) return std::nullopt;
  return ToError(status);
}

// What gRPC says of a channel that cannot connect: a call is the only way to be told.
std::string WhyNotConnected(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
  v1::ListEnginesResponse answer;
  const grpc::Status status =
      v1::EngineService::NewStub(channel)->ListEngines(&context, v1::ListEnginesRequest(), &answer);
  const std::string text = status.error_message(), mark = "last error: ";
  const size_t at = text.find(mark);
  return at == std::string::npos ? text : text.substr(at + mark.size());
}

}  // namespace

const char* CodeName(grpc::StatusCode code) {
  static constexpr const char* kNames[] = {
      "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
      "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
      "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
      "DATA_LOSS", "UNAUTHENTICATED"};
  const int index = static_cast<int>(code);
  return index >= 0 && index <= 16 ? kNames[index] : "UNKNOWN";
}

Error ToError(const google::rpc::Status& status) {
  Error error{CodeName(static_cast<grpc::StatusCode>(status.code())), "", status.message(), {}};
  for (const auto& any : status.details()) {
    google::rpc::ErrorInfo info;
    if (!any.UnpackTo(&info)) continue;
    error.reason = info.reason();
    error.metadata.insert(info.metadata().begin(), info.metadata().end());
  }
  return error;
}

Error ToError(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) details.Clear();
  details.set_code(static_cast<int>(status.error_code()));
  details.set_message(status.error_message());
  return ToError(details);
}

std::unique_ptr<Client> Client::Connect(const Options& options, Error* error) {
  const auto credentials = Credentials(options, error);
  if (!credentials) return nullptr;
  std::unique_ptr<Client> client(new Client());
  client->token_ = options.token;
  if (!options.token_file.empty()) {
    const auto token = ReadWhole(options.token_file);
    if (!token) {
      *error = {"INVALID_ARGUMENT", "TOKEN_FILE", "cannot read " + options.token_file, {}};
      return nullptr;
    }
    client->token_ = token->substr(0, token->find_first_of("\r\n"));
    // The daemon's own list has names and roles beside its tokens: sent as a token it would only be called wrong.
    if (client->token_.empty() || client->token_.find_first_of(" \t#") != std::string::npos) {
      *error = {"INVALID_ARGUMENT",
                "TOKEN_FILE",
                options.token_file + ": the first line must be the token and nothing else",
                {}};
      return nullptr;
    }
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(options.max_message_bytes);
  client->channel_ = grpc::CreateCustomChannel(options.server, credentials, arguments);
  const auto wait = std::chrono::milliseconds(static_cast<int64_t>(options.connect_seconds * 1000));
  const auto deadline = std::chrono::system_clock::now() + wait;
  for (grpc_connectivity_state state = client->channel_->GetState(true); state != GRPC_CHANNEL_READY;
       state = client->channel_->GetState(true)) {
    if (state != GRPC_CHANNEL_TRANSIENT_FAILURE && client->channel_->WaitForStateChange(state, deadline)) continue;
    if (state != GRPC_CHANNEL_TRANSIENT_FAILURE) {  // nobody refused: the time was too short to know
      *error = {"DEADLINE_EXCEEDED", "SERVER_UNREACHABLE", options.server + ": no answer in time", {}};
      return nullptr;
    }
    *error = {"UNAVAILABLE", "SERVER_UNREACHABLE", "no sagequantd answers at " + options.server, {}};
    if (const std::string why = WhyNotConnected(client->channel_); !why.empty()) error->message += ": " + why;
    return nullptr;
  }
  client->engines_ = EngineService::NewStub(client->channel_);
  client->generation_ = GenerationService::NewStub(client->channel_);
  client->quantization_ = QuantizationService::NewStub(client->channel_);
  client->artifacts_ = ArtifactService::NewStub(client->channel_);
  client->reports_ = ReportService::NewStub(client->channel_);
  client->operations_ = OperationService::NewStub(client->channel_);
  return client;
}

void Client::Authorize(grpc::ClientContext* context) const {
  if (!token_.empty()) context->AddMetadata("authorization", "Bearer " + token_);
}

std::optional<Error> Client::Generate(const v1::GenerateRequest& request, const OnUpdate& each) const {
  grpc::ClientContext context;
  Authorize(&context);
  return ReadUpdates(&context, generation_->Generate(&context, request), each);
}

std::optional<Error> Client::Chat(const v1::ChatRequest& request, const OnUpdate& each) const {
  grpc::ClientContext context;
  Authorize(&context);
  return ReadUpdates(&context, generation_->Chat(&context, request), each);
}

std::optional<Error> Client::Follow(const std::string& operation_id,
                                    const std::function<void(const v1::Operation&)>& each, v1::Operation* last) const {
  grpc::ClientContext context;
  Authorize(&context);
  v1::WatchOperationRequest request;
  request.set_id(operation_id);
  auto reader = operations_->WatchOperation(&context, request);
  while (reader->Read(last)) {
    if (each) each(*last);
  }
  if (const grpc::Status status = reader->Finish(); !status.ok()) return ToError(status);
  if (last->state() == v1::OPERATION_STATE_SUCCEEDED) return std::nullopt;
  return ToError(last->error());
}

}  // namespace sage::client
