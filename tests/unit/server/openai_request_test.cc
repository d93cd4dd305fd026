// OpenAI bodies: what is refused rather than ignored.
#include "server/http/openai_request.h"

#include "engine/base/status.h"
#include "gtest/gtest.h"

namespace sage::server {
namespace {

std::string FieldOf(const std::string& body) {
  const auto request = ParseOpenAiRequest(body, /*chat=*/false);
  if (request.ok()) return "";
  return GetErrorReason(request.status()).metadata["field"];
}

TEST(OpenAiRequest, BestOfMustEqualN) {
  EXPECT_EQ(FieldOf(R"({"prompt": "x", "best_of": 2})"), "best_of") << "n is 1 where it is not said";
  EXPECT_EQ(FieldOf(R"({"prompt": "x", "best_of": 2, "n": 3})"), "best_of");
  EXPECT_EQ(FieldOf(R"({"prompt": "x", "best_of": 1})"), "");
  EXPECT_EQ(FieldOf(R"({"prompt": "x", "best_of": 2, "n": 2})"), "");
  EXPECT_EQ(FieldOf(R"({"prompt": "x", "best_of": null, "n": 2})"), "");
}

}  // namespace
}  // namespace sage::server
