// Error handling for the whole engine: absl::Status with a machine-readable reason, and the two propagation macros.
//
// Every error names the thing, the rule and the value ("int4_w4a16: group_size must divide K, got K=576,
// group_size=128"). `MakeError` attaches a reason (UPPER_SNAKE) and metadata that the server turns into
// google.rpc.ErrorInfo.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sage {

// What ErrorInfo carries on the wire. `reason` is empty when the status has none attached.
struct ErrorReason {
  std::string reason;
  std::map<std::string, std::string> metadata;
};

absl::Status MakeError(absl::StatusCode code, std::string_view reason, std::string_view message,
                       const std::map<std::string, std::string>& metadata = {});
// INVALID_ARGUMENT.
inline absl::Status InvalidInput(std::string_view reason, std::string_view message,
                                 const std::map<std::string, std::string>& metadata = {}) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason, message, metadata);
}
ErrorReason GetErrorReason(const absl::Status& status);

// The same code and reason with `prefix: ` before the message.
absl::Status Annotate(const absl::Status& status, std::string_view prefix);

}  // namespace sage

#define SAGE_STATUS_CONCAT_(a, b) a##b
#define SAGE_STATUS_CONCAT(a, b) SAGE_STATUS_CONCAT_(a, b)

#define SAGE_RETURN_IF_ERROR(expr)               \
  do {                                           \
    absl::Status sage_status_ = (expr);          \
    if (!sage_status_.ok()) return sage_status_; \
  } while (0)

#define SAGE_ASSIGN_OR_RETURN(lhs, expr) SAGE_ASSIGN_OR_RETURN_(SAGE_STATUS_CONCAT(sage_or_, __LINE__), lhs, expr)
#define SAGE_ASSIGN_OR_RETURN_(tmp, lhs, expr) \
  auto tmp = (expr);                           \
  if (!tmp.ok()) return tmp.status();          \
  lhs = std::move(tmp).value()
