// What every command takes, and how a command ends: exit codes and the JSON shape of errors.
#pragma once

#include <string>

#include "nlohmann/json.hpp"

namespace sage::cli {

struct GlobalOptions {
  std::string server = "127.0.0.1:50551";
  bool json = false;
  double timeout_seconds = 0;  // 0 = none
  std::string token_file, ca, cert, key;
};

enum ExitCode : int {
  kDone = 0,
  kFailed = 1,
  kUsage = 2,
  kUnreachable = 3,
  kGateNotMet = 4,
  kCancelled = 130,
};

// How a command failed. `code` is the canonical gRPC name ("INVALID_ARGUMENT").
struct Failure {
  int exit_code = kFailed;
  std::string code, reason, message;
  nlohmann::ordered_json metadata = nlohmann::ordered_json::object();
};

// {"code", "reason", "message", "metadata"}: how a failure looks in every document.
nlohmann::ordered_json FailureJson(const Failure& failure);
// With --json one JSON document on stdout, otherwise one line on stderr; returns the exit code.
int PrintFailure(const GlobalOptions& options, const Failure& failure);
int UsageError(const GlobalOptions& options, const std::string& reason, const std::string& message);

// One JSON document on stdout.
void PrintJson(const nlohmann::ordered_json& document);

}  // namespace sage::cli
