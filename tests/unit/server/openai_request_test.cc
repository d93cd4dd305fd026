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

std::string ChatRefusal(const std::string& word) {
  const auto request =
      ParseOpenAiRequest(R"({"messages": [{"role": "user", "content": "x"}], )" + word + "}", /*chat=*/true);
  return request.ok() ? "" : std::string(request.status().message());
}

TEST(OpenAiRequest, ACallThatCannotBeForcedIsRefused) {
  EXPECT_EQ(ChatRefusal(R"("tool_choice": "auto", "tools": [])"), "");
  EXPECT_EQ(ChatRefusal(R"("tool_choice": "none")"), "");
  EXPECT_EQ(ChatRefusal(R"("tool_choice": "required")"),
            "tool_choice: must be \"auto\" or \"none\": a call cannot be forced, got \"required\"");
  EXPECT_NE(ChatRefusal(R"("tool_choice": {"type": "function", "function": {"name": "f"}})"), "");
}

TEST(OpenAiRequest, FieldsKeepTheirNamesAndFigures) {
  EXPECT_EQ(ChatRefusal(R"("logprobs": true, "top_logprobs": 21)"), "top_logprobs: must be from 0 to 20, got 21");
  EXPECT_EQ(ChatRefusal(R"("logprobs": true, "top_logprobs": -1)"), "top_logprobs: must be from 0 to 20, got -1");
  EXPECT_EQ(ChatRefusal(R"("n": 99999999999999999999)"), "n: must be from -2147483648 to 2147483647, got 1e+20");
  EXPECT_EQ(ChatRefusal(R"("n": 1.5)"), "n: must be a whole number");
}

TEST(OpenAiRequest, SeedsAreAny64Bits) {
  const auto seed = [](const std::string& text) {
    const auto request = ParseOpenAiRequest(R"({"prompt": "x", "seed": )" + text + "}", /*chat=*/false);
    return request.ok() ? request->spec.sampling.seed.value_or(0) : 0;
  };
  EXPECT_EQ(seed("12439705172890862202"), 12439705172890862202u);
  EXPECT_EQ(seed("9223372036854775807"), 9223372036854775807u);
  EXPECT_EQ(seed("-5"), static_cast<uint64_t>(-5));
  EXPECT_EQ(seed("7.0"), 7u);
}

}  // namespace
}  // namespace sage::server
