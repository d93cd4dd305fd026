// Builds and reads the error details of google.rpc.
#include "server/convert_status.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/support/status.h"

namespace sage::server {
namespace {

constexpr char kDomain[] = "sagequant";
constexpr size_t kMaxMessage = 3000;  // headers carry it

std::string Cut(const std::string& text, size_t bytes) {
  if (text.size() <= bytes) return text;
  size_t end = bytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

// Protobuf strings must be UTF-8; messages may quote what came from outside.
std::string Utf8(const std::string& text) {
  const std::string quoted = DumpJson(Json(text));
  return Json::parse(quoted).get<std::string>();
}

}  // namespace

std::string CodeName(absl::StatusCode code) {
  const std::string name = absl::StatusCodeToString(code);
  return name.empty() ? "UNKNOWN" : name;
}

std::string ReasonOf(const absl::Status& status) {
  const std::string reason = GetErrorReason(status).reason;
  return reason.empty() ? CodeName(status.code()) : reason;
}

absl::Duration RetryAfter(const absl::Status& status) {
  const ErrorReason reason = GetErrorReason(status);
  if (status.code() == absl::StatusCode::kUnavailable) return absl::Seconds(1);
  if (status.code() != absl::StatusCode::kResourceExhausted) return absl::ZeroDuration();
  int64_t known = 0;  // whoever refused may know when there is room again
  const auto told = reason.metadata.find("retry_after_ms");
  if (told != reason.metadata.end() && absl::SimpleAtoi(told->second, &known) && known > 0) {
    return absl::Milliseconds(known);
  }
  return absl::Seconds(reason.reason == "INSUFFICIENT_MEMORY" ? 10 : 1);
}

int64_t RetryAfterSeconds(const absl::Status& status) {
  return absl::ToInt64Seconds(absl::Ceil(RetryAfter(status), absl::Seconds(1)));
}

google::rpc::Status ToRpcStatus(const absl::Status& status) {
  google::rpc::Status out;
  out.set_code(static_cast<int>(status.code()));
  if (status.ok()) return out;
  const std::string message = Utf8(Cut(std::string(status.message()), kMaxMessage));
  out.set_message(message);
  const ErrorReason reason = GetErrorReason(status);
  google::rpc::ErrorInfo info;
  info.set_reason(Cut(ReasonOf(status), 60));
  info.set_domain(kDomain);
  size_t left = 2048;
  for (const auto& [key, value] : reason.metadata) {
    if (key.size() + value.size() > left) break;
    left -= key.size() + value.size();
    (*info.mutable_metadata())[Utf8(key)] = Utf8(value);
  }
  out.add_details()->PackFrom(info);
  if (const absl::Duration wait = RetryAfter(status); wait > absl::ZeroDuration()) {
    google::rpc::RetryInfo retry;
    absl::Duration rest;
    retry.mutable_retry_delay()->set_seconds(absl::IDivDuration(wait, absl::Seconds(1), &rest));
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
    out.add_details()->PackFrom(retry);
  }
  if (auto field = reason.metadata.find("field"); field != reason.metadata.end()) {
    google::rpc::BadRequest bad;
    auto* violation = bad.add_field_violations();
    violation->set_field(Utf8(field->second));
    violation->set_description(Cut(message, 512));
    out.add_details()->PackFrom(bad);
  }
  if (status.code() == absl::StatusCode::kFailedPrecondition) {
    google::rpc::PreconditionFailure failure;
    auto* violation = failure.add_violations();
    violation->set_type(info.reason());
    auto subject = reason.metadata.find("subject");
    if (subject != reason.metadata.end()) violation->set_subject(Utf8(subject->second));
    violation->set_description(Cut(message, 512));
    out.add_details()->PackFrom(failure);
  }
  return out;
}

absl::Status FromRpcStatus(const google::rpc::Status& status) {
  if (status.code() == 0) return absl::OkStatus();
  std::string reason;
  std::map<std::string, std::string> metadata;
  for (const auto& detail : status.details()) {
    google::rpc::ErrorInfo info;
    if (!detail.UnpackTo(&info)) continue;
    reason = info.reason();
    metadata.insert(info.metadata().begin(), info.metadata().end());
  }
  return MakeError(static_cast<absl::StatusCode>(status.code()), reason, status.message(), metadata);
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const google::rpc::Status rpc = ToRpcStatus(status);
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), rpc.message(), rpc.SerializeAsString());
}

int HttpCode(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kCancelled:
      return 499;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
      return 409;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kUnimplemented:
      return 501;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

Json OpenAiError(const absl::Status& status) {
  const int code = HttpCode(status.code());
  const ErrorReason reason = GetErrorReason(status);
  const auto field = reason.metadata.find("field");
  const char* type = code == 401   ? "authentication_error"
                     : code == 404 ? "not_found_error"
                     : code == 429 ? "rate_limit_error"
                     : code >= 500 ? "server_error"
                                   : "invalid_request_error";
  Json metadata = Json::object();
  for (const auto& [key, value] : reason.metadata) metadata[key] = value;
  return {{"error",
           {{"message", std::string(status.message())},
            {"type", type},
            {"param", field == reason.metadata.end() ? Json(nullptr) : Json(field->second)},
            {"code", ReasonOf(status)},
            {"metadata", metadata}}}};
}

absl::Status BadField(const std::string& field, const std::string& reason, const std::string& message) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason, absl::StrCat(field, ": ", message), {{"field", field}});
}

}  // namespace sage::server
