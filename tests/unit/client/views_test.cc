// What the command line shows: lines that fit a terminal, frames of `sage top`, and the filter of capabilities.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "client/cli/capability_filter.h"
#include "client/cli/operations.h"
#include "client/cli/top_frame.h"

namespace sage::cli {
namespace {

namespace v1 = ::sage::quant::v1;
using Json = nlohmann::ordered_json;
using ::testing::HasSubstr;
using ::testing::StartsWith;

int Columns(const std::string& line) {
  int count = 0;
  for (const char c : line) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

v1::Operation LongOperation() {
  v1::Operation operation;
  operation.set_id("start_engine-20261121135512-0a1b2c3d");
  operation.set_kind("start_engine");
  operation.set_state(v1::OPERATION_STATE_RUNNING);
  operation.mutable_progress()->set_done(3);
  operation.mutable_progress()->set_total(4);
  operation.mutable_progress()->set_eta_seconds(61);
  operation.set_target("an-artifact-with-a-name-that-goes-on-and-on-and-on");
  return operation;
}

TEST(CutToColumns, CountsCharactersNotBytes) {
  EXPECT_EQ(CutToColumns("abc", 3), "abc");
  EXPECT_EQ(CutToColumns("abcd", 3), "ab…");
  EXPECT_EQ(CutToColumns("äöüß", 4), "äöüß");
  EXPECT_EQ(CutToColumns("äöüß", 3), "äö…");
  EXPECT_EQ(CutToColumns("ab", 1), "…");
  EXPECT_EQ(CutToColumns("", 5), "");
  EXPECT_EQ(CutToColumns("abcd", 0), "abcd");
}

TEST(OperationLine, FitsAnyTerminal) {
  const v1::Operation operation = LongOperation();
  for (const int columns : {20, 40, 60, 79, 80, 100}) EXPECT_LE(Columns(OperationLine(operation, columns)), columns);
  const std::string line = OperationLine(operation, 0);
  EXPECT_THAT(line, StartsWith("start_engine-20261121135512-0a1b2c3d RUNNING"));
  EXPECT_THAT(line, HasSubstr("75%"));
  EXPECT_THAT(line, HasSubstr("ETA 1m 01s"));
  EXPECT_THAT(line, HasSubstr("on-and-on-and-on"));
}

TEST(Top, RatesComeFromTwoLooks) {
  TopLook before, now;
  before.seconds = 10;
  now.seconds = 12;
  v1::Engine engine;
  engine.set_engine_id("an-engine-of-a-very-long-name-indeed");
  engine.set_state(v1::ENGINE_STATE_RUNNING);
  engine.set_quantization("int8_w8a16");
  engine.mutable_load()->set_generated_tokens_total(100);
  engine.mutable_load()->set_kv_pages_total(10);
  before.engines.push_back(engine);
  engine.mutable_load()->set_generated_tokens_total(150);
  engine.mutable_load()->set_kv_pages_used(5);
  now.engines.push_back(engine);
  v1::Engine fresh;  // was not there before
  fresh.set_engine_id("fresh");
  fresh.mutable_load()->set_generated_tokens_total(1000);
  now.engines.push_back(fresh);
  now.operations.push_back(LongOperation());
  const Json top = TopJson(before, now);
  EXPECT_DOUBLE_EQ(top["engines"][0]["tokens_per_second"].get<double>(), 25);
  EXPECT_DOUBLE_EQ(top["engines"][0]["kv_share"].get<double>(), 0.5);
  EXPECT_EQ(top["engines"][0]["state"], "RUNNING");
  EXPECT_DOUBLE_EQ(top["engines"][1]["tokens_per_second"].get<double>(), 0);
  EXPECT_DOUBLE_EQ(top["engines"][1]["kv_share"].get<double>(), 0);
  std::istringstream frame(TopFrame(top, "title", 80, 0));
  int lines = 0;
  for (std::string line; std::getline(frame, line); ++lines) EXPECT_LE(Columns(line), 80) << line;
  EXPECT_EQ(lines, 10);
  EXPECT_THAT(TopFrame(top, "title", 0, 0), HasSubstr("█████░░░░░"));
  EXPECT_EQ(TopFrame(top, "title", 80, 3),
            "title\n\n" + TopFrame(top, "title", 80, 0).substr(7, TopFrame(top, "title", 80, 0).find('\n', 7) - 6));
}

Json Document() {
  const auto row = [](const char* name, const char* dtype, int weight, int activation) {
    return Json{{"name", name}, {"weight_dtype", dtype}, {"weight_bits", weight}, {"activation_bits", activation}};
  };
  return {{"linear_strategies",
           {row("bf16", "bf16", 16, 16), row("int8_w8a16", "int8", 8, 16), row("int8_w8a8", "int8", 8, 8),
            row("int4_w4a16", "int4", 4, 16)}},
          {"backends", {{{"name", "cpu"}}, {{"name", "cuda"}}}}};
}

std::string Names(const Json& list) {
  std::string out;
  for (const Json& row : list) out += row["name"].get<std::string>() + " ";
  return out;
}

TEST(CapabilityFilter, KeepsWhatFits) {
  const auto names = [](const char* weight, const char* activation) {
    CapabilityFilter filter;
    filter.kernel.set_weight_dtype(weight);
    filter.kernel.set_activation_dtype(activation);
    Json all = Document();
    EXPECT_FALSE(FilterCapabilities(filter, &all).has_value());
    return Names(all["linear_strategies"]);
  };
  EXPECT_EQ(names("", ""), "bf16 int8_w8a16 int8_w8a8 int4_w4a16 ");
  EXPECT_EQ(names("int8", ""), "int8_w8a16 int8_w8a8 ");
  EXPECT_EQ(names("w8a16", ""), "int8_w8a16 ");
  EXPECT_EQ(names("int4_w4a16", ""), "int4_w4a16 ");
  EXPECT_EQ(names("int4", "w8a16"), "int4_w4a16 ");  // 4-bit weights, 16-bit activations
  EXPECT_EQ(names("", "int8"), "int8_w8a8 ");
  EXPECT_EQ(names("int8", "bf16"), "int8_w8a16 ");
}

TEST(CapabilityFilter, NamesWhatThereIs) {
  CapabilityFilter filter;
  filter.kernel.set_weight_dtype("int5");
  Json all = Document();
  auto failure = FilterCapabilities(filter, &all);
  ASSERT_TRUE(failure.has_value());
  EXPECT_EQ(failure->exit_code, kUsage);
  EXPECT_EQ(failure->reason, "NOTHING_FITS");
  EXPECT_THAT(failure->message, HasSubstr("bf16, int4, int8"));
  filter.kernel.set_weight_dtype("");
  filter.kernel.set_backend("abacus");
  failure = FilterCapabilities(filter, &all);
  ASSERT_TRUE(failure.has_value());
  EXPECT_THAT(failure->message, HasSubstr("cpu, cuda"));
}

}  // namespace
}  // namespace sage::cli
