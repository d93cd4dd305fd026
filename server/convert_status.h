// Errors on the wire: absl::Status with a reason to google.rpc.Status with details, gRPC status, HTTP code and JSON.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/base/json.h"

namespace google::rpc {
class Status;
}
namespace grpc {
class Status;
}

namespace sage::server {

// ErrorInfo (domain "sagequant") always; RetryInfo with RESOURCE_EXHAUSTED (unless the request itself is too large) and
// UNAVAILABLE; BadRequest when the metadata names a "field"; PreconditionFailure with FAILED_PRECONDITION.
google::rpc::Status ToRpcStatus(const absl::Status& status);
absl::Status FromRpcStatus(const google::rpc::Status& status);
grpc::Status ToGrpcStatus(const absl::Status& status);

// Reason of the status, or the code's name when it has none.
std::string ReasonOf(const absl::Status& status);
std::string CodeName(absl::StatusCode code);  // "INVALID_ARGUMENT"
int HttpCode(absl::StatusCode code);          // 400, 404, 429, ...
// The OpenAI error body: {"error":{"message","type","param","code"}}.
Json OpenAiError(const absl::Status& status);
// After what time a retry of the same request may work (zero = do not say); in whole seconds, rounded up, for HTTP.
absl::Duration RetryAfter(const absl::Status& status);
int64_t RetryAfterSeconds(const absl::Status& status);

// INVALID_ARGUMENT for a field, with the field's name for BadRequest.
absl::Status BadField(const std::string& field, const std::string& reason, const std::string& message);

}  // namespace sage::server
