// The words of the wire and the CLI for float-coded weights.
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

}  // namespace
}  // namespace sage
