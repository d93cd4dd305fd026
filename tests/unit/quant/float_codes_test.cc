// Eight-bit floats against their definition, every code; NF4, FP4 and the dynamic map against the tool's own files.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <random>
#include <string>

#include "engine/quant/fp8.h"
#include "engine/quant/nf4.h"
#include "gtest/gtest.h"
#include "tests/unit/decoder/golden_data.h"

namespace sage {
namespace {

// What a code means, by the definition of the format and in f64.
double Meaning(int code, int mantissa_bits, int bias) {
  const int exponent = (code & 0x7f) >> mantissa_bits, mantissa = code & ((1 << mantissa_bits) - 1);
  const double unit = std::ldexp(1.0, -mantissa_bits);
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa * unit, 1 - bias) : std::ldexp(1.0 + mantissa * unit, exponent - bias);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

TEST(Fp8, ReferenceVectors) {
  const std::pair<double, int> vectors[] = {
      {1.0, 0x38},   {-1.0, 0xB8},  {0.5, 0x30},        {0.1, 0x1D},          {3.14159265358979, 0x45},
      {448, 0x7E},   {500, 0x7E},   {0x1p-6, 0x08},     {0x1p-9, 0x01},       {0x1p-10, 0x00},
      {17, 0x58},    {19, 0x5A},    {-17.5, 0xD9},      {1.5 * 0x1p-9, 0x02}, {-0x1p-9, 0x81},
      {1e30, 0x7E},  {-1e30, 0xFE}, {0.0, 0x00},        {464, 0x7E},          {-0.0, 0x80},
      {463.9, 0x7E}, {0x1p-140, 0}, {0x1.00002p-10, 1},
  };
  for (const auto& [value, code] : vectors) EXPECT_EQ(EncodeE4M3(static_cast<float>(value)), code) << value;
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(EncodeE4M3(inf), 0x7E);
  EXPECT_EQ(EncodeE4M3(-inf), 0xFE);
  EXPECT_EQ(EncodeE4M3(std::nanf("")) & 0x7f, 0x7F);
  EXPECT_EQ(EncodeE5M2(inf), 0x7B);
  EXPECT_EQ(EncodeE5M2(-inf), 0xFB);
  EXPECT_EQ(EncodeE5M2(60000.0f), 0x7B);
  EXPECT_EQ(EncodeE5M2(1e9f), 0x7B);
  EXPECT_EQ(EncodeE5M2(1.0f), 0x3C);
  EXPECT_EQ(EncodeE5M2(0x1p-16f), 0x01);
  EXPECT_EQ(EncodeE5M2(0x1p-17f), 0x00);
  EXPECT_FALSE(IsFiniteE5M2(EncodeE5M2(std::nanf(""))));
}

TEST(Fp8, EveryCodeRoundTrips) {
  for (int code = 0; code < 256; ++code) {
    const uint8_t byte = static_cast<uint8_t>(code);
    if (IsFiniteE4M3(byte)) {
      EXPECT_EQ(DecodeE4M3(byte), Meaning(code, 3, 7)) << code;
      EXPECT_EQ(EncodeE4M3(DecodeE4M3(byte)), byte);
      EXPECT_EQ(RoundToE4M3(DecodeE4M3(byte)), DecodeE4M3(byte));
    } else {
      EXPECT_TRUE(std::isnan(DecodeE4M3(byte))) << code;
    }
    if (IsFiniteE5M2(byte)) {
      EXPECT_EQ(DecodeE5M2(byte), Meaning(code, 2, 15)) << code;
      EXPECT_EQ(EncodeE5M2(DecodeE5M2(byte)), byte);
    } else {
      EXPECT_FALSE(std::isfinite(DecodeE5M2(byte))) << code;
      EXPECT_EQ(std::isinf(DecodeE5M2(byte)), (code & 0x7f) == 0x7c);
    }
    EXPECT_EQ(static_cast<double>(DecodeE8M0(byte)) == std::ldexp(1.0, code - 127), code != 255) << code;
  }
}

// The nearest finite code by exhaustive search; ties to the even code.
int Nearest(double value, int mantissa_bits, int bias, int largest) {
  int best = 0;
  double distance = std::numeric_limits<double>::infinity();
  for (int code = 0; code <= largest; ++code) {
    const double d = std::fabs(Meaning(code, mantissa_bits, bias) - std::fabs(value));
    if (d < distance || (d == distance && code % 2 == 0)) {
      best = code;
      distance = d;
    }
  }
  return std::signbit(value) ? best | 0x80 : best;
}

TEST(Fp8, EncodesToTheNearestCode) {
  std::mt19937 random(11);
  std::uniform_real_distribution<double> exponent(-20, 18), sign(-1, 1);
  for (int i = 0; i < 20000; ++i) {
    float value = static_cast<float>(std::copysign(std::exp2(exponent(random)), sign(random)));
    if (i % 3 == 0) {  // exact ties between neighbours
      const int code = static_cast<int>(random() % 126);
      value = static_cast<float>((Meaning(code, 3, 7) + Meaning(code + 1, 3, 7)) / 2);
    }
    ASSERT_EQ(EncodeE4M3(value), Nearest(value, 3, 7, 0x7e)) << value;
    ASSERT_EQ(EncodeE5M2(value), Nearest(value, 2, 15, 0x7b)) << value;
    ASSERT_EQ(RoundToE4M3(value), DecodeE4M3(EncodeE4M3(value))) << value;
  }
  EXPECT_TRUE(std::isnan(RoundToE4M3(std::nanf(""))));
  EXPECT_EQ(TokenScaleE4M3(0), 1.0f / (448.0f * 512.0f));
  EXPECT_EQ(TokenScaleE4M3(448), 1.0f);
  EXPECT_EQ(GroupScaleE4M3(0), 1e-10f / 448.0f);
}

TEST(Nf4, ReferenceVector) {
  std::string codes;
  for (int i = 0; i < 64; ++i) codes += "0123456789abcdef"[EncodeNf4(static_cast<float>(-1.0 + 2.0 * i / 63.0))];
  EXPECT_EQ(codes, "00000111111112222233344445556667788899aaabbbccccddddeeeeeeefffff");
}

TEST(Nf4, EveryCodeRoundTrips) {
  for (size_t code = 0; code < 16; ++code) {
    EXPECT_EQ(EncodeNf4(kNf4Table[code]), code);
    EXPECT_EQ(EncodeFp4(kFp4Table[code]), code == 8 ? 0 : code);
    EXPECT_EQ(EncodeE2m1(kE2m1Table[code]), code == 8 ? 0 : code);
  }
  EXPECT_EQ(EncodeFp4(-0.001f), 8);
  EXPECT_EQ(EncodeFp4(0.29f), 7);
  EXPECT_EQ(EncodeFp4(0.3f), 4);
  EXPECT_EQ(EncodeE2m1(0.25f), 0);  // ties to even
  EXPECT_EQ(EncodeE2m1(0.75f), 2);
  EXPECT_EQ(EncodeE2m1(-2.5f), 12);
  EXPECT_EQ(EncodeE2m1(1e9f), 7);
}

TEST(Nf4, DynamicMapSearch) {
  const auto& map = DynamicMap();
  EXPECT_TRUE(std::is_sorted(map.begin(), map.end()));
  EXPECT_EQ(map[255], 1.0f);
  EXPECT_GT(map[0], -1.0f);
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(-1.1f, 1.1f);
  for (int i = 0; i < 2000; ++i) {
    const float value = i < 256 ? map[static_cast<size_t>(i)] : uniform(random);
    const float chosen = map[EncodeDynamic(value)];
    for (const float entry : map) ASSERT_LE(std::fabs(chosen - value), std::fabs(entry - value));
  }
}

TEST(Nf4, DoubleQuantizationIsClose) {
  std::mt19937 random(5);
  std::uniform_real_distribution<float> uniform(0.05f, 0.4f);
  std::vector<float> absmax(700);
  for (float& v : absmax) v = uniform(random);
  const DoubleQuantized out = DoubleQuantize(absmax, 256);
  ASSERT_EQ(out.codes.size(), 700u);
  ASSERT_EQ(out.nested_absmax.size(), 3u);
  for (size_t i = 0; i < absmax.size(); ++i) {
    const float nested = out.nested_absmax[i / 256];
    // Cells of the top decade are 0.9 / 64 wide.
    EXPECT_NEAR(DoubleDequantize(DynamicMap()[out.codes[i]], nested, out.offset), absmax[i], nested * 0.0075f);
  }
  const DoubleQuantized flat = DoubleQuantize(std::vector<float>(5, 0.25f), 256);
  EXPECT_EQ(DoubleDequantize(DynamicMap()[flat.codes[4]], flat.nested_absmax[0], flat.offset), 0.25f);
}

TEST(Nf4, TablesEqualTheToolsFiles) {
  const std::string folder = std::string(SAGE_SOURCE_DIR) + "/../shared/data/checkpoints";
  if (!std::filesystem::exists(folder + "/bnb-nf4-double")) GTEST_SKIP() << "shared checkpoints are absent";
  const std::string weight = "model.layers.0.self_attn.q_proj.weight";
  const GoldenTensors nf4(folder + "/bnb-nf4-double/model.safetensors");
  const GoldenTensors fp4(folder + "/bnb-fp4/model.safetensors");
  EXPECT_EQ(nf4.Get<float>(weight + ".quant_map"), std::vector<float>(kNf4Table.begin(), kNf4Table.end()));
  EXPECT_EQ(fp4.Get<float>(weight + ".quant_map"), std::vector<float>(kFp4Table.begin(), kFp4Table.end()));
  EXPECT_EQ(nf4.Get<float>(weight + ".nested_quant_map"), std::vector<float>(DynamicMap().begin(), DynamicMap().end()));
}

}  // namespace
}  // namespace sage
