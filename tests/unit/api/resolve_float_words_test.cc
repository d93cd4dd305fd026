// The words of the wire and the CLI for linear layers.
#include "engine/api/linear_strategy.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"

namespace sage {
namespace {

TEST(ResolveFloatWords, OneWord) {
  EXPECT_EQ(ResolveLinearStrategy("nf4").value(), "nf4_w4a16");
  EXPECT_EQ(ResolveLinearStrategy("fp4").value(), "fp4_w4a16");
  EXPECT_EQ(ResolveLinearStrategy("fp8").value(), "fp8_w8a16");
  EXPECT_EQ(ResolveLinearStrategy("mxfp4").value(), "mxfp4_w4a16");
  EXPECT_EQ(ResolveLinearStrategy("nvfp4").value(), "nvfp4_w4a16");
  EXPECT_EQ(ResolveLinearStrategy("fp8_w8a8").value(), "fp8_w8a8");
  EXPECT_EQ(ResolveLinearStrategy("int8").value(), "int8_w8a16");
  EXPECT_EQ(ResolveLinearStrategy("int4").value(), "int4_w4a16");
}

TEST(ResolveFloatWords, WeightsAndActivations) {
  EXPECT_EQ(ResolveLinearStrategy("fp8", "w8a16").value(), "fp8_w8a16");
  EXPECT_EQ(ResolveLinearStrategy("fp8", "bf16").value(), "fp8_w8a16");
  EXPECT_EQ(ResolveLinearStrategy("fp8", "").value(), "fp8_w8a16");
  EXPECT_EQ(ResolveLinearStrategy("fp8", "w8a8").value(), "fp8_w8a8");
  EXPECT_EQ(ResolveLinearStrategy("fp8", "fp8").value(), "fp8_w8a8");
  EXPECT_EQ(ResolveLinearStrategy("nf4", "w4a16").value(), "nf4_w4a16");
  EXPECT_EQ(ResolveLinearStrategy("nf4", "").value(), "nf4_w4a16");
  EXPECT_EQ(ResolveLinearStrategy("fp4", "bf16").value(), "fp4_w4a16");
}

TEST(ResolveFloatWords, NoSuchCombination) {
  // The weight word's kind and the activation word's kind must go together.
  for (const auto& [weight, activation] : {std::pair{"nf4", "fp8"},
                                           {"nf4", "w4a8"},
                                           {"fp8", "int8"},
                                           {"int8", "fp8"},
                                           {"int4", "fp8"},
                                           {"fp8", "w8a4"},
                                           {"e4m3", ""}}) {
    const auto got = ResolveLinearStrategy(weight, activation);
    EXPECT_EQ(GetErrorReason(got.status()).reason, "UNKNOWN_QUANTIZATION") << weight << " + " << activation;
  }
}

// A composite word means the bits it says, as one word and as a weight word, or nothing.
TEST(ResolveWords, CompositesSayBothWidths) {
  const std::pair<const char*, const char*> known[] = {{"w2a16", "gptq_w2a16"}, {"w3a16", "gptq_w3a16"},
                                                       {"w4a16", "int4_w4a16"}, {"w8a16", "int8_w8a16"},
                                                       {"w4a8", "int4_w4a8"},   {"w8a8", "int8_w8a8"}};
  for (const auto& [word, strategy] : known) {
    EXPECT_EQ(ResolveLinearStrategy(word).value(), strategy) << word;
    EXPECT_EQ(ResolveLinearStrategy(word, "").value(), strategy) << word;
  }
  for (const char* word : {"w5a16", "w6a16", "w16a16", "wxa8", "wa8", "w4a", "w4a4", "w2a8", "w3a8", "w48a16", "w04a16",
                           "w4a160", "W4A16", "a8", "w4"}) {
    EXPECT_EQ(GetErrorReason(ResolveLinearStrategy(word).status()).reason, "UNKNOWN_QUANTIZATION") << word;
    EXPECT_EQ(GetErrorReason(ResolveLinearStrategy(word, "").status()).reason, "UNKNOWN_QUANTIZATION") << word;
  }
  EXPECT_EQ(ResolveLinearStrategy("int4", "w8a16").value(), "int4_w4a16");
  EXPECT_EQ(ResolveLinearStrategy("w8a8", "int8").value(), "int8_w8a8");
  EXPECT_EQ(ResolveLinearStrategy("").value(), "");
  EXPECT_EQ(ResolveLinearStrategy("none").value(), "");
  // Two words that contradict each other.
  EXPECT_EQ(GetErrorReason(ResolveLinearStrategy("w8a16", "int8").status()).reason, "UNKNOWN_QUANTIZATION");
  EXPECT_EQ(GetErrorReason(ResolveLinearStrategy("w4a8", "w4a16").status()).reason, "UNKNOWN_QUANTIZATION");
}

}  // namespace
}  // namespace sage
