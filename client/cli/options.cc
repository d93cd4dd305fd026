// Prints results and failures the same way for every command.
#include "client/cli/options.h"

#include <cstdio>

namespace sage::cli {
namespace {

// Bytes that are no UTF-8 become U+FFFD: stdout is always valid JSON.
std::string Dump(const nlohmann::ordered_json& document) {
  return document.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace

void PrintJson(const nlohmann::ordered_json& document) {
  std::printf("%s\n", Dump(document).c_str());
  std::fflush(stdout);
}

nlohmann::ordered_json FailureJson(const Failure& failure) {
  return {
      {"code", failure.code}, {"reason", failure.reason}, {"message", failure.message}, {"metadata", failure.metadata}};
}

int PrintFailure(const GlobalOptions& options, const Failure& failure) {
  if (options.json) {
    PrintJson({{"error", FailureJson(failure)}});
  } else {
    std::fprintf(stderr, "error: %s%s%s%s\n", failure.message.c_str(), failure.reason.empty() ? "" : " [",
                 failure.reason.c_str(), failure.reason.empty() ? "" : "]");
  }
  return failure.exit_code;
}

int UsageError(const GlobalOptions& options, const std::string& reason, const std::string& message) {
  return PrintFailure(options, {.exit_code = kUsage, .code = "INVALID_ARGUMENT", .reason = reason, .message = message});
}

}  // namespace sage::cli
