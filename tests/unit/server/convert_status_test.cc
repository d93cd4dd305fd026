// Errors on the wire.
#include "server/convert_status.h"

#include "engine/base/status.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/support/status.h"
#include "gtest/gtest.h"

namespace sage::server {
namespace {

template <typename Detail>
bool Unpack(const google::rpc::Status& status, Detail* out) {
  for (const auto& any : status.details()) {
    if (any.UnpackTo(out)) return true;
  }
  return false;
}

TEST(ConvertStatus, DetailsOfEachKind) {
  google::rpc::ErrorInfo info;
  google::rpc::RetryInfo retry;
  google::rpc::BadRequest bad;
  google::rpc::PreconditionFailure failure;
  auto full = ToRpcStatus(MakeError(absl::StatusCode::kResourceExhausted, "QUEUE_FULL", "full", {{"limit", "3"}}));
  ASSERT_TRUE(Unpack(full, &info) && Unpack(full, &retry));
  EXPECT_EQ(info.reason(), "QUEUE_FULL");
  EXPECT_EQ(info.domain(), "sagequant");
  EXPECT_EQ(info.metadata().at("limit"), "3");
  EXPECT_GT(retry.retry_delay().seconds(), 0);
  // Whoever knows how long it takes is believed, in both protocols.
  const absl::Status rate =
      MakeError(absl::StatusCode::kResourceExhausted, "RATE_LIMITED", "wait", {{"retry_after_ms", "9250"}});
  ASSERT_TRUE(Unpack(ToRpcStatus(rate), &retry));
  EXPECT_EQ(retry.retry_delay().seconds(), 9);
  EXPECT_EQ(retry.retry_delay().nanos(), 250000000);
  EXPECT_EQ(RetryAfterSeconds(rate), 10);
  auto field = ToRpcStatus(BadField("top_p", "OUT_OF_RANGE", "must be"));
  ASSERT_TRUE(Unpack(field, &bad));
  EXPECT_EQ(bad.field_violations(0).field(), "top_p");
  EXPECT_FALSE(Unpack(field, &retry));
  auto precondition = ToRpcStatus(MakeError(absl::StatusCode::kFailedPrecondition, "NO_TOKENIZER", "x"));
  ASSERT_TRUE(Unpack(precondition, &failure));
  EXPECT_EQ(failure.violations(0).type(), "NO_TOKENIZER");
  auto plain = ToRpcStatus(absl::InternalError("x"));
  ASSERT_TRUE(Unpack(plain, &info));
  EXPECT_EQ(info.reason(), "INTERNAL");
}

TEST(ConvertStatus, RoundTripAndGrpc) {
  const absl::Status status = MakeError(absl::StatusCode::kNotFound, "ENGINE_NOT_FOUND", "no", {{"engine_id", "e"}});
  const absl::Status back = FromRpcStatus(ToRpcStatus(status));
  EXPECT_EQ(back.code(), status.code());
  EXPECT_EQ(GetErrorReason(back).reason, "ENGINE_NOT_FOUND");
  EXPECT_EQ(GetErrorReason(back).metadata.at("engine_id"), "e");
  const grpc::Status wire = ToGrpcStatus(status);
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(wire.error_details()));
  EXPECT_EQ(wire.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(details.code(), 5);
}

TEST(ConvertStatus, HostileTextStaysSmallAndUtf8) {
  const std::string junk = std::string(100000, 'x') + "\xff\xfe";
  const auto rpc = ToRpcStatus(MakeError(absl::StatusCode::kInvalidArgument, "R", junk, {{"a", junk}, {"b", "\xff"}}));
  EXPECT_LT(rpc.ByteSizeLong(), 8000u);
  const auto short_junk = ToRpcStatus(absl::InvalidArgumentError("\xff\xfe"));
  EXPECT_FALSE(short_junk.SerializeAsString().empty());
}

TEST(ConvertStatus, HttpCodes) {
  EXPECT_EQ(HttpCode(absl::StatusCode::kNotFound), 404);
  EXPECT_EQ(HttpCode(absl::StatusCode::kResourceExhausted), 429);
  EXPECT_EQ(HttpCode(absl::StatusCode::kUnavailable), 503);
  const Json error = OpenAiError(BadField("n", "OUT_OF_RANGE", "x"));
  EXPECT_EQ(error["error"]["param"], "n");
  EXPECT_EQ(error["error"]["type"], "invalid_request_error");
}

}  // namespace
}  // namespace sage::server
