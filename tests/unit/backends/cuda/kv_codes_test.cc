// Every code and every rounding of the 8-bit formats on the device side against the tables of engine/quant.
#include "engine/backends/cuda/kv_codes.h"

#include <cmath>
#include <random>

#include "engine/quant/fp8.h"
#include "engine/tensor/float_convert.h"
#include "gtest/gtest.h"

namespace sage::cuda {
namespace {

float Half(uint32_t pair, int i) { return F16Value(static_cast<uint16_t>(pair >> (16 * i))); }

TEST(CudaKvCodes, EveryCodeBecomesItsValue) {
  for (uint32_t code = 0; code < 256; ++code) {
    // In each of the four places, beside other codes.
    for (int place = 0; place < 4; ++place) {
      const uint32_t others = 0x3a51c74bu & ~(0xffu << (8 * place)), word = others | code << (8 * place);
      const auto taken = [&](auto convert) {
        uint32_t low = 0, high = 0;
        convert(low, high);
        return Half(place < 2 ? low : high, place % 2);
      };
      const auto byte = static_cast<uint8_t>(code);
      if ((code & 0x7f) != 0x7f) {
        EXPECT_EQ(taken([&](uint32_t& a, uint32_t& b) { CodesToF16<KvStore::kFp8>(word, kE4m3Code, a, b); }) *
                      kE4m3Code.factor,
                  DecodeE4M3(byte));
      }
      if ((code & 0x7f) <= 0x7b) {
        EXPECT_EQ(taken([&](uint32_t& a, uint32_t& b) { CodesToF16<KvStore::kFp8>(word, kE5m2Code, a, b); }),
                  DecodeE5M2(byte));
      }
      EXPECT_EQ(taken([&](uint32_t& a, uint32_t& b) { CodesToF16<KvStore::kInt8>(word, kInt8Code, a, b); }),
                static_cast<float>(static_cast<int8_t>(byte)));
    }
  }
}

TEST(CudaKvCodes, RoundingEqualsTheReference) {
  // Every f16 value, a step of f32 to either side of it, and values beyond the range.
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float exact = F16Value(static_cast<uint16_t>(bits));
    if (std::isnan(exact)) continue;
    for (const float value : {exact, std::nextafter(exact, 1e30f), std::nextafter(exact, -1e30f), exact * 3.0f}) {
      if (!std::isfinite(value)) continue;
      ASSERT_EQ(EncodeFp8(value, kE4m3Code), EncodeE4M3(value)) << value;
      ASSERT_EQ(EncodeFp8(value, kE5m2Code), EncodeE5M2(value)) << value;
      ASSERT_EQ(PackF16(value, 0.0f), FloatToF16(value)) << value;
      ASSERT_EQ(PackBf16(value, 0.0f), FloatToBF16(value)) << value;
    }
  }
}

TEST(CudaKvCodes, SixteenBitsSaturate) {
  EXPECT_EQ(SaturateBf16(3.4e38f), 0x7f7f);
  EXPECT_EQ(SaturateBf16(-3.4e38f), 0xff7f);
  EXPECT_EQ(SaturateBf16(INFINITY), 0x7f80);
  EXPECT_TRUE(std::isnan(Bf16Value(SaturateBf16(NAN))));
  EXPECT_EQ(F16Value(SaturateF16(1e30f)), 65504.0f);
  EXPECT_EQ(F16Value(SaturateF16(-1e30f)), -65504.0f);
  EXPECT_TRUE(std::isnan(F16Value(SaturateF16(NAN))));
}

}  // namespace
}  // namespace sage::cuda
