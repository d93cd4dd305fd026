// Between the client library and the command line: options in, Failures out, and interrupt handling.
#include "client/cli/session.h"

#include <signal.h>

#include <algorithm>
#include <chrono>
#include <thread>

namespace sage::cli {
Session::Session(const GlobalOptions& options) : options_(options) {}

std::optional<Failure> Session::Connect() {
  if (client_) return std::nullopt;
  client::Options options;
  options.server = options_.server;
  options.token_file = options_.token_file;
  options.ca = options_.ca;
  options.cert = options_.cert;
  options.key = options_.key;
  const bool shortened = options_.timeout_seconds > 0 && options_.timeout_seconds < options.connect_seconds;
  if (shortened) options.connect_seconds = options_.timeout_seconds;
  client::Error error;
  client_ = client::Client::Connect(options, &error);
  if (client_) return std::nullopt;
  Failure failure{.exit_code = kUsage, .code = error.code, .reason = error.reason, .message = error.message};
  if (shortened && error.code == "DEADLINE_EXCEEDED") {
    failure.exit_code = kFailed;
    failure.reason = "TIMEOUT";
    failure.message = "--timeout: passed before " + options_.server + " answered";
  } else if (error.reason == "SERVER_UNREACHABLE") {
    failure.code = "UNAVAILABLE";
    failure.exit_code = kUnreachable;
    const bool refused = error.message.find("Connection refused") != std::string::npos ||
                         error.message.find("No such file") != std::string::npos;
    const bool tls = !options_.ca.empty() || !options_.cert.empty() || !options_.key.empty();
    failure.message +=
        refused ? " (start one, or name another with --server or SAGE_SERVER)"
        : tls   ? " (something listens there: is it the gRPC port, does --ca sign its certificate and name, does "
                  "it want another --cert and --key?)"
                : " (if something listens there: is it the gRPC port, and does it want TLS, --ca?)";
  }
  return failure;
}

Session::Call::Call(Session& session) : session_(session) {
  if (session.options_.timeout_seconds > 0) {
    context_.set_deadline(std::chrono::system_clock::now() +
                          std::chrono::milliseconds(static_cast<int64_t>(session.options_.timeout_seconds * 1000)));
  }
  session.Authorize(&context_);
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
  const client::Error error = client::ToError(status);
  Failure failure{.code = error.code, .reason = error.reason, .message = error.message};
  for (const auto& [key, value] : error.metadata) failure.metadata[key] = value;
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
