// What the command line parses and prints without a server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "client/cli/completion.h"
#include "client/cli/generation_flags.h"
#include "client/cli/operations.h"
#include "client/cli/progress.h"
#include "client/cli/report_html.h"
#include "client/cli/requirements.h"

namespace sage::cli {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::vector<Requirement> Parsed(const std::string& text) {
  std::vector<Requirement> out;
  const auto failure = ParseRequirements(text, &out);
  EXPECT_FALSE(failure.has_value()) << failure->message;
  return out;
}

TEST(Requirements, ParsesEveryOperator) {
  const auto all = Parsed("kl.mean<0.01, a<=1,b > -2e-3,c>=0.99,d==4");
  ASSERT_EQ(all.size(), 5u);
  EXPECT_EQ(all[0].path, "kl.mean");
  EXPECT_EQ(all[0].op, "<");
  EXPECT_DOUBLE_EQ(all[0].number, 0.01);
  EXPECT_EQ(all[1].op, "<=");
  EXPECT_EQ(all[2].path, "b");
  EXPECT_DOUBLE_EQ(all[2].number, -2e-3);
  EXPECT_EQ(all[3].op, ">=");
  EXPECT_EQ(all[4].op, "==");
}

TEST(Requirements, RefusesWhatIsNone) {
  for (const char* text :
       {"", "kl.mean", "kl.mean<", "<1", "a=1", "a<>1", "a<b", "a<1x", "a<nan", "a<1,,b<2", "a<1,"}) {
    std::vector<Requirement> out;
    const auto failure = ParseRequirements(text, &out);
    ASSERT_TRUE(failure.has_value()) << text;
    EXPECT_EQ(failure->exit_code, kUsage) << text;
    EXPECT_EQ(failure->reason, "BAD_REQUIREMENT") << text;
  }
}

TEST(Requirements, ChecksAgainstTheDocument) {
  const Json report = {{"kl", {{"mean", 0.02}}}, {"top1_agreement", 1}};
  Json checked;
  ASSERT_FALSE(CheckRequirements(Parsed("kl.mean<0.01,kl.mean>=0.02,top1_agreement==1"), report, &checked));
  ASSERT_EQ(checked.size(), 3u);
  EXPECT_FALSE(checked[0]["met"].get<bool>());
  EXPECT_TRUE(checked[1]["met"].get<bool>());
  EXPECT_TRUE(checked[2]["met"].get<bool>());
}

TEST(Requirements, UnknownPathIsWrongUsage) {
  const Json report = {{"kl", {{"mean", 0.02}}}, {"name", "x"}};
  for (const char* text : {"kl.max<1", "kl<1", "name<1", "kl.mean.x<1", "kl..mean<1"}) {
    Json checked;
    const auto failure = CheckRequirements(Parsed(text), report, &checked);
    ASSERT_TRUE(failure.has_value()) << text;
    EXPECT_EQ(failure->exit_code, kUsage) << text;
  }
}

TEST(Ids, ParsesAndRefuses) {
  std::vector<int32_t> ids;
  ASSERT_FALSE(ParseIds("1, 2,-3", &ids));
  EXPECT_THAT(ids, ElementsAre(1, 2, -3));
  for (const char* text : {"1,x", "1.5", "2147483648", "1 2"}) {
    std::vector<int32_t> out;
    EXPECT_TRUE(ParseIds(text, &out).has_value()) << text;
  }
}

TEST(GenerationFlags, NumbersThatDoNotFitAreWrongUsage) {
  const auto parse = [](std::vector<std::string> arguments, GenerationFlags& flags) {
    CLI::App app;
    AddGenerationFlags(app, flags);
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
    app.parse(arguments);
  };
  GenerationFlags flags;
  parse({"--seed", "18446744073709551615", "--top-k", "2147483647"}, flags);
  EXPECT_EQ(flags.options.sampling().seed(), UINT64_MAX);
  EXPECT_EQ(flags.options.sampling().top_k(), INT32_MAX);
  for (const auto& [flag, value] : std::vector<std::pair<std::string, std::string>>{{"--seed", "-1"},
                                                                                    {"--seed", "18446744073709551616"},
                                                                                    {"--seed", "1x"},
                                                                                    {"--top-k", "4294967297"},
                                                                                    {"--n", "4294967297"},
                                                                                    {"--logprobs", "4294967296"}}) {
    EXPECT_THROW(parse({flag, value}, flags), CLI::ParseError) << flag << " " << value;
  }
}

TEST(Progress, Formats) {
  EXPECT_EQ(FormatSeconds(3.24), "3.2s");
  EXPECT_EQ(FormatSeconds(65), "1m 05s");
  EXPECT_EQ(FormatSeconds(3720), "1h 02m");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(135.2e6), "135.2 MB");
}

TEST(Operations, JsonHasTheContractsFields) {
  ::sage::quant::v1::Operation operation;
  operation.set_id("op-1");
  operation.set_kind("calibrate");
  operation.set_state(::sage::quant::v1::OPERATION_STATE_SUCCEEDED);
  operation.mutable_progress()->set_eta_seconds(-1);
  operation.set_result_json(R"({"artifact":"a"})");
  const Json json = OperationJson(operation);
  EXPECT_EQ(json["state"], "SUCCEEDED");
  EXPECT_TRUE(json["error"].is_null());
  EXPECT_TRUE(json["progress"]["eta_seconds"].is_null());
  EXPECT_EQ(json["result"]["artifact"], "a");
}

TEST(Completion, ListsTheTree) {
  CLI::App app("test", "sage");
  app.add_flag("--json");
  app.add_subcommand("llm", "")->add_subcommand("engine", "")->add_option("--engine-id");
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const std::string script = CompletionScript(app, shell);
    EXPECT_THAT(script, HasSubstr("' llm engine'")) << shell;
    EXPECT_THAT(script, HasSubstr("--engine-id")) << shell;
  }
}

TEST(ReportHtml, EscapesAndDraws) {
  const Json report = {{"artifact", "<script>"},
                       {"kl", {{"mean", 0.01}, {"p99", 0.2}}},
                       {"layers", {{{"name", "layer.0"}, {"error", 0.1}}, {{"name", "layer.1"}, {"error", 0.2}}}}};
  const std::string html = ReportHtml(report);
  EXPECT_THAT(html, Not(HasSubstr("<script>")));
  EXPECT_THAT(html, HasSubstr("&lt;script&gt;"));
  EXPECT_THAT(html, HasSubstr("<svg"));
  EXPECT_THAT(html, HasSubstr("layer.1"));
}

}  // namespace
}  // namespace sage::cli
