// 16-bit float conversions: every pattern round-trips, and rounding is half to even at the edges.
#include "engine/tensor/float_convert.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace sage {
namespace {

TEST(FloatConvertTest, EveryPatternRoundTrips) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t b = static_cast<uint16_t>(bits);
    const float half = F16ToFloat(b), brain = BF16ToFloat(b);
    if (std::isnan(half)) {
      EXPECT_TRUE(std::isnan(F16ToFloat(FloatToF16(half))));
    } else {
      EXPECT_EQ(FloatToF16(half), b);
    }
    if (std::isnan(brain)) {
      EXPECT_TRUE(std::isnan(BF16ToFloat(FloatToBF16(brain))));
    } else {
      EXPECT_EQ(FloatToBF16(brain), b);
    }
  }
}

TEST(FloatConvertTest, RoundsHalfToEvenAndSaturatesToInfinity) {
  EXPECT_EQ(FloatToF16(1.0f + 1.0f / 2048), 0x3c00);  // a tie goes to the even neighbour
  EXPECT_EQ(FloatToF16(1.0f + 3.0f / 2048), 0x3c02);
  EXPECT_EQ(FloatToF16(65504.0f), 0x7bff);
  EXPECT_EQ(FloatToF16(65519.9f), 0x7bff);
  EXPECT_EQ(FloatToF16(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToF16(std::ldexp(1.0f, -25)), 0x0000);  // half the least subnormal: tie to zero
  EXPECT_EQ(FloatToF16(std::ldexp(1.5f, -25)), 0x0001);
  EXPECT_EQ(FloatToF16(std::ldexp(1.0f, -14)), 0x0400);
  EXPECT_EQ(FloatToF16(std::ldexp(1023.75f, -24)), 0x0400);  // rounds up into the normal range
  EXPECT_EQ(FloatToF16(-0.0f), 0x8000);
  EXPECT_EQ(FloatToBF16(1.0f + 1.0f / 256), 0x3f80);
  EXPECT_EQ(FloatToBF16(1.0f + 3.0f / 256), 0x3f82);
  EXPECT_EQ(FloatToBF16(std::numeric_limits<float>::max()), 0x7f80);
}

}  // namespace
}  // namespace sage
