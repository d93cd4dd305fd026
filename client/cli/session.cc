// Channel set-up, error details and interrupt handling.
#include "client/cli/session.h"

#include <signal.h>

#include <chrono>
#include <fstream>
#include <iterator>
#include <map>
#include <thread>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace sage::cli {
namespace {

constexpr auto kConnectTimeout = std::chrono::seconds(5);

const char* CodeName(grpc::StatusCode code) {
  static constexpr const char* kNames[] = {
      "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
      "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
      "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
      "DATA_LOSS", "UNAUTHENTICATED"};
  const int index = static_cast<int>(code);
  return index >= 0 && index <= 16 ? kNames[index] : "UNKNOWN";
}

std::optional<std::string> ReadWhole(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(in), {});
}

}  // namespace

Session::Session(const GlobalOptions& options) : options_(options) {}

std::shared_ptr<grpc::ChannelCredentials> Session::Credentials(std::string* error) const {
  if (options_.ca.empty() && options_.cert.empty() && options_.key.empty()) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions tls;
  const std::pair<const std::string*, std::string*> files[] = {{&options_.ca, &tls.pem_root_certs},
                                                               {&options_.cert, &tls.pem_cert_chain},
                                                               {&options_.key, &tls.pem_private_key}};
  for (const auto& [path, target] : files) {
    if (path->empty()) continue;
    const auto content = ReadWhole(*path);
    if (!content) {
      *error = "cannot read " + *path;
      return nullptr;
    }
    *target = *content;
  }
  return grpc::SslCredentials(tls);
}

std::optional<Failure> Session::Connect() {
  if (channel_) return std::nullopt;
  std::string error;
  const auto credentials = Credentials(&error);
  if (!credentials)
    return Failure{.exit_code = kUsage, .code = "INVALID_ARGUMENT", .reason = "CREDENTIALS", .message = error};
  if (!options_.token_file.empty()) {
    const auto token = ReadWhole(options_.token_file);
    if (!token) {
      return Failure{.exit_code = kUsage,
                     .code = "INVALID_ARGUMENT",
                     .reason = "TOKEN_FILE",
                     .message = "cannot read " + options_.token_file};
    }
    token_ = token->substr(0, token->find_first_of("\r\n"));
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(256 << 20);
  channel_ = grpc::CreateCustomChannel(options_.server, credentials, arguments);
  auto wait = std::chrono::duration<double>(kConnectTimeout);
  if (options_.timeout_seconds > 0) wait = std::min(wait, std::chrono::duration<double>(options_.timeout_seconds));
  const auto deadline = std::chrono::system_clock::now() + std::chrono::duration_cast<std::chrono::milliseconds>(wait);
  for (grpc_connectivity_state state = channel_->GetState(true); state != GRPC_CHANNEL_READY;
       state = channel_->GetState(true)) {
    if (state != GRPC_CHANNEL_TRANSIENT_FAILURE && channel_->WaitForStateChange(state, deadline)) continue;
    channel_.reset();
    return Failure{.exit_code = kUnreachable,
                   .code = "UNAVAILABLE",
                   .reason = "SERVER_UNREACHABLE",
                   .message = "no sagequantd answers at " + options_.server +
                              " (start one, or name another with --server or SAGE_SERVER)"};
  }
  return std::nullopt;
}

Session::Call::Call(Session& session) : session_(session) {
  if (session.options_.timeout_seconds > 0) {
    context_.set_deadline(std::chrono::system_clock::now() +
                          std::chrono::milliseconds(static_cast<int64_t>(session.options_.timeout_seconds * 1000)));
  }
  if (!session.token_.empty()) context_.AddMetadata("authorization", "Bearer " + session.token_);
  std::lock_guard<std::mutex> lock(session.mutex_);
  session.calls_.insert(&context_);
}

Session::Call::~Call() {
  std::lock_guard<std::mutex> lock(session_.mutex_);
  session_.calls_.erase(&context_);
}

void Session::WatchInterrupt() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::thread([this, set] {
    int signal = 0;
    for (int presses = 1; sigwait(&set, &signal) == 0; ++presses) {
      std::lock_guard<std::mutex> lock(mutex_);
      interrupted_ = true;
      if (presses > 1 || calls_.empty()) _exit(kCancelled);
      for (grpc::ClientContext* call : calls_) call->TryCancel();
    }
  }).detach();
}

Failure StatusFailure(const google::rpc::Status& status) {
  Failure failure{.code = CodeName(static_cast<grpc::StatusCode>(status.code())), .message = status.message()};
  for (const auto& any : status.details()) {
    google::rpc::ErrorInfo info;
    if (!any.UnpackTo(&info)) continue;
    failure.reason = info.reason();
    const std::map<std::string, std::string> sorted(info.metadata().begin(), info.metadata().end());
    for (const auto& [key, value] : sorted) failure.metadata[key] = value;
  }
  return failure;
}

Failure Session::ToFailure(const grpc::Status& status) const {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) details.Clear();
  details.set_code(static_cast<int>(status.error_code()));
  details.set_message(status.error_message());
  Failure failure = StatusFailure(details);
  if (interrupted_) {
    failure.exit_code = kCancelled;
    if (failure.reason.empty()) failure.reason = "INTERRUPTED";
  } else if (status.error_code() == grpc::StatusCode::UNAVAILABLE && failure.reason.empty()) {
    failure.exit_code = kUnreachable;
    failure.reason = "SERVER_UNREACHABLE";
  } else if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED && failure.reason.empty()) {
    failure.reason = "TIMEOUT";
  } else if (failure.reason.empty()) {
    failure.reason = failure.code;
  }
  return failure;
}

}  // namespace sage::cli
