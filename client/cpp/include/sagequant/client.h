// The C++ client of sagequantd: a connection with its credentials, the stubs of every service, and typed errors. The
// `sage` command is built on it. Messages and stubs are those generated from proto/ (sage/quant/v1/*.grpc.pb.h).
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "google/rpc/status.pb.h"
#include "sage/quant/v1/artifact.grpc.pb.h"
#include "sage/quant/v1/engine.grpc.pb.h"
#include "sage/quant/v1/generation.grpc.pb.h"
#include "sage/quant/v1/operation.grpc.pb.h"
#include "sage/quant/v1/quantization.grpc.pb.h"
#include "sage/quant/v1/report.grpc.pb.h"

namespace sage::client {

// Where the daemon is and what opens its door. Empty paths mean "without".
struct Options {
  std::string server = "127.0.0.1:50551";  // HOST:PORT or unix:PATH
  std::string token;                       // bearer token
  std::string token_file;                  // instead of `token`: a file whose first line is the token
  std::string ca, cert, key;               // PEM files; any of them turns TLS on
  double connect_seconds = 5;              // how long Connect waits
  int max_message_bytes = 256 << 20;       // longest answer that is taken
};

// What failed, in the daemon's words.
struct Error {
  std::string code;     // canonical gRPC name: "INVALID_ARGUMENT"
  std::string reason;   // UPPER_SNAKE, for programs; "" when the daemon did not say one
  std::string message;  // for people
  std::map<std::string, std::string> metadata;
};

// "INVALID_ARGUMENT".
const char* CodeName(grpc::StatusCode code);
// The details that travel with a status, or that an operation or engine stores.
Error ToError(const grpc::Status& status);
Error ToError(const google::rpc::Status& status);

// One connection. All members may be used from any thread.
class Client {
 public:
  // Null and `error` when a file cannot be read (reasons CREDENTIALS, TOKEN_FILE) or nobody answers
  // (SERVER_UNREACHABLE: UNAVAILABLE when it is refused, DEADLINE_EXCEEDED when connect_seconds passed).
  static std::unique_ptr<Client> Connect(const Options& options, Error* error);

  // Adds the token to a call that is made with a stub of this client.
  void Authorize(grpc::ClientContext* context) const;

  using EngineService = quant::v1::EngineService;
  using GenerationService = quant::v1::GenerationService;
  using QuantizationService = quant::v1::QuantizationService;
  using ArtifactService = quant::v1::ArtifactService;
  using ReportService = quant::v1::ReportService;
  using OperationService = quant::v1::OperationService;
  EngineService::Stub& engines() const { return *engines_; }
  GenerationService::Stub& generation() const { return *generation_; }
  QuantizationService::Stub& quantization() const { return *quantization_; }
  ArtifactService::Stub& artifacts() const { return *artifacts_; }
  ReportService::Stub& reports() const { return *reports_; }
  OperationService::Stub& operations() const { return *operations_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

  // Runs a generation or chat; `each` sees every update and stops it by answering false. The error, if it failed.
  using OnUpdate = std::function<bool(const quant::v1::GenerationUpdate&)>;
  std::optional<Error> Generate(const quant::v1::GenerateRequest& request, const OnUpdate& each) const;
  std::optional<Error> Chat(const quant::v1::ChatRequest& request, const OnUpdate& each) const;
  // Follows an operation until it has ended, `each` (may be empty) seeing every change. The error, if it did not
  // succeed.
  std::optional<Error> Follow(const std::string& operation_id,
                              const std::function<void(const quant::v1::Operation&)>& each,
                              quant::v1::Operation* last) const;

 private:
  Client() = default;
  std::string token_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<EngineService::Stub> engines_;
  std::unique_ptr<GenerationService::Stub> generation_;
  std::unique_ptr<QuantizationService::Stub> quantization_;
  std::unique_ptr<ArtifactService::Stub> artifacts_;
  std::unique_ptr<ReportService::Stub> reports_;
  std::unique_ptr<OperationService::Stub> operations_;
};

}  // namespace sage::client
