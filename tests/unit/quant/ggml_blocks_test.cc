// ggml blocks: dequantization against gguf-py, byte vectors of ggml's own quantizers, and the lossless affine form.
#include "engine/quant/ggml_blocks.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/quant/error_metrics.h"
#include "gtest/gtest.h"

namespace sage {
namespace {

uint64_t Fnv(const void* bytes, size_t size) {
  uint64_t hash = 1469598103934665603ull;
  for (size_t i = 0; i < size; ++i) hash = (hash ^ static_cast<const uint8_t*>(bytes)[i]) * 1099511628211ull;
  return hash;
}

std::string Hex(const std::vector<uint8_t>& bytes) {
  std::string out;
  for (const uint8_t byte : bytes) {
    out += "0123456789abcdef"[byte >> 4];
    out += "0123456789abcdef"[byte & 15];
  }
  return out;
}

struct Golden {
  GgmlType type;
  int half[2];    // offsets of f16 fields in a block
  double sixth;   // value 5
  uint64_t hash;  // FNV-1a of the f32 bytes of 64 blocks
};
// Made with gguf-py `gguf.quants.dequantize` over the blocks of `RandomBlocks`.
const Golden kGolden[] = {
    {GgmlType::kQ4_0, {0, -1}, -0.0, 0xbaafa0485f279344ull},
    {GgmlType::kQ4_1, {0, 2}, -0.748931884765625, 0xb9ca71a575e807cbull},
    {GgmlType::kQ5_0, {0, -1}, 0.285186767578125, 0x9b3c6bbea1cc7368ull},
    {GgmlType::kQ5_1, {0, 2}, -1.433380126953125, 0x3713fa648331017aull},
    {GgmlType::kQ8_0, {0, -1}, -1.368896484375, 0xaba865584a6d6ca9ull},
    {GgmlType::kQ2_K, {80, 82}, 1.68109130859375, 0xaa1afa980bb1faf6ull},
    {GgmlType::kQ3_K, {108, -1}, 1.9859619140625, 0xf9a43dceedffdb5full},
    {GgmlType::kQ4_K, {0, 2}, -43.100128173828125, 0xe4a6c37b18f05616ull},
    {GgmlType::kQ5_K, {0, 2}, -84.16702270507812, 0x87a958b8b033db41ull},
    {GgmlType::kQ6_K, {208, -1}, -19.00390625, 0xf94e58f5d2444913ull},
    {GgmlType::kIQ4_NL, {0, -1}, -0.057037353515625, 0x06ae65394b79578dull},
    {GgmlType::kIQ4_XS, {0, -1}, 22.81494140625, 0x23926c135d3bdfaaull},
};

// xorshift32 bytes; exponents of the f16 fields are set so that they are small normal numbers of either sign.
std::vector<uint8_t> RandomBlocks(const Golden& golden, int blocks) {
  const GgmlTypeInfo* layout = FindGgmlType(golden.type);
  std::vector<uint8_t> out(static_cast<size_t>(blocks * layout->bytes));
  uint32_t x = 2463534242u;
  for (uint8_t& byte : out) {
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    byte = static_cast<uint8_t>(x >> 8);
  }
  for (int b = 0; b < blocks; ++b) {
    for (const int at : golden.half) {
      if (at < 0) continue;
      uint8_t& high = out[static_cast<size_t>(b * layout->bytes + at + 1)];
      high = static_cast<uint8_t>((high & 0x83) | 0x28);
    }
  }
  return out;
}

TEST(GgmlBlocks, DequantizeEqualsGgufPy) {
  for (const Golden& golden : kGolden) {
    const GgmlTypeInfo* layout = FindGgmlType(golden.type);
    ASSERT_NE(layout, nullptr);
    const std::vector<uint8_t> blocks = RandomBlocks(golden, 64);
    std::vector<float> values(static_cast<size_t>(64 * layout->block));
    ASSERT_TRUE(DequantizeBlocks(golden.type, blocks.data(), 64 * layout->block, values.data()).ok());
    EXPECT_EQ(values[5], static_cast<float>(golden.sixth)) << layout->name;
    EXPECT_EQ(Fnv(values.data(), values.size() * 4), golden.hash) << layout->name;
  }
}

TEST(GgmlBlocks, AffineFormHasTheSameBits) {
  for (const Golden& golden : kGolden) {
    const GgmlTypeInfo* layout = FindGgmlType(golden.type);
    const std::vector<uint8_t> blocks = RandomBlocks(golden, 8);
    const int64_t n = 8 * layout->block, groups = n / layout->group;
    std::vector<float> values(static_cast<size_t>(n)), scale(static_cast<size_t>(groups)), offset(scale.size());
    std::vector<int8_t> codes(values.size());
    ASSERT_TRUE(DequantizeBlocks(golden.type, blocks.data(), n, values.data()).ok());
    float* offsets = layout->has_offset ? offset.data() : nullptr;
    ASSERT_TRUE(RepackToAffine8(golden.type, blocks.data(), n, codes.data(), scale.data(), offsets).ok());
    for (int64_t i = 0; i < n; ++i) {
      const size_t g = static_cast<size_t>(i / layout->group);
      float value = scale[g] * static_cast<float>(codes[static_cast<size_t>(i)]);
      if (layout->has_offset) value += offset[g];
      ASSERT_EQ(std::memcmp(&value, &values[static_cast<size_t>(i)], 4), 0) << layout->name << " value " << i;
    }
    if (layout->has_offset) {
      EXPECT_FALSE(RepackToAffine8(golden.type, blocks.data(), n, codes.data(), scale.data(), nullptr).ok());
    }
  }
}

TEST(GgmlBlocks, ReferenceQuantizerBytes) {
  float x[32];
  for (int j = 0; j < 32; ++j) x[j] = static_cast<float>(j - 16);
  std::vector<uint8_t> q40(18), q41(20), q80(34);
  ASSERT_TRUE(QuantizeBlocks(GgmlType::kQ4_0, x, 32, q40.data()).ok());
  ASSERT_TRUE(QuantizeBlocks(GgmlType::kQ4_1, x, 32, q41.data()).ok());
  ASSERT_TRUE(QuantizeBlocks(GgmlType::kQ8_0, x, 32, q80.data()).ok());
  EXPECT_EQ(Hex(q40), "0040809191a2a2b3b3c4c4d5d5e6e6f7f7f8");
  EXPECT_EQ(Hex(q41), "224000cc80809191a2a2b3b3c4c4d5d5e6e6f7f7");
  EXPECT_EQ(Hex(q80), "083081899199a1a9b1b9c0c8d0d8e0e8f0f8000810182028303840474f575f676f77");
}

// The vectors of quantization.md 1.8, made by ggml's own quantizers.
TEST(GgmlBlocks, ReferenceQuantizerBytesOfKQuants) {
  std::vector<float> x(256), back(256);
  for (int j = 0; j < 256; ++j) x[static_cast<size_t>(j)] = static_cast<float>((37 * j) % 256 - 128) / 64;
  const auto mse = [&](GgmlType type, const std::vector<uint8_t>& blocks) {
    EXPECT_TRUE(DequantizeBlocks(type, blocks.data(), 256, back.data()).ok());
    double sum = 0;
    for (size_t i = 0; i < 256; ++i)
      sum += (static_cast<double>(back[i]) - x[i]) * (static_cast<double>(back[i]) - x[i]);
    return sum / 256;
  };
  std::vector<uint8_t> q4k(144), q6k(210);
  ASSERT_TRUE(QuantizeBlocks(GgmlType::kQ4_K, x.data(), 256, q4k.data()).ok());
  EXPECT_EQ(Hex(q4k).substr(0, 48), "9c1c1c28f4f4fff5fef7fffb44df9423a0c2f5072a5c7fa0");
  EXPECT_EQ(Fnv(q4k.data(), q4k.size()), 0x0f2267446d5a3765ull);
  EXPECT_NEAR(mse(GgmlType::kQ4_K, q4k), 0.00439412374, 1e-10);
  EXPECT_FLOAT_EQ(back[0], -1.990479f);
  EXPECT_FLOAT_EQ(back[2], -0.8201294f);
  ASSERT_TRUE(QuantizeBlocks(GgmlType::kQ6_K, x.data(), 256, q6k.data()).ok());
  EXPECT_EQ(Hex(q6k).substr(2 * 192), "7f75738b85807a718f897f7b758d8b811010");
  EXPECT_EQ(Fnv(q6k.data(), q6k.size()), 0xa17308c6ca756a42ull);
  EXPECT_NEAR(mse(GgmlType::kQ6_K, q6k), 0.000230734753, 1e-11);
  EXPECT_FLOAT_EQ(back[1], -1.448555f);
}

TEST(GgmlBlocks, EncodedCodesAreTheSameValuesOrRefused) {
  uint32_t seed = 99;
  const auto next = [&](int low, int high) {
    seed = seed * 1664525u + 1013904223u;
    return low + static_cast<int>((seed >> 8) % static_cast<uint32_t>(high - low + 1));
  };
  for (int round = 0; round < 200; ++round) {
    const int zero = next(0, 15);
    const float scale = std::ldexp(static_cast<float>(next(1, 255)), -14);  // as bf16 scales are
    for (const GgmlType type : {GgmlType::kQ4_0, GgmlType::kQ4_1, GgmlType::kQ8_0}) {
      int16_t codes[32];
      for (int16_t& code : codes) {
        code = static_cast<int16_t>(type == GgmlType::kQ4_0   ? next(-8, 7)
                                    : type == GgmlType::kQ4_1 ? next(-zero, 15 - zero)
                                                              : next(-128, 127));
      }
      std::vector<uint8_t> block(34);
      float back[32];
      if (!EncodeBlock(type, codes, scale, zero, block.data())) {
        EXPECT_EQ(type, GgmlType::kQ4_1) << "a scale of 8 bits fits f16";  // scale * zero may not
        continue;
      }
      ASSERT_TRUE(DequantizeBlocks(type, block.data(), 32, back).ok());
      for (int i = 0; i < 32; ++i) ASSERT_EQ(back[i], static_cast<float>(codes[i]) * scale);
    }
  }
  uint8_t block[34];
  int16_t codes[32] = {};
  EXPECT_FALSE(EncodeBlock(GgmlType::kQ8_0, codes, 1.0f / 3, 0, block));  // f16 would round it
  EXPECT_FALSE(EncodeBlock(GgmlType::kQ8_0, codes, 1e6f, 0, block));
  EXPECT_FALSE(EncodeBlock(GgmlType::kQ4_K, codes, 1, 0, block));
  codes[7] = 8;
  EXPECT_FALSE(EncodeBlock(GgmlType::kQ4_0, codes, 1, 0, block));
  EXPECT_TRUE(EncodeBlock(GgmlType::kQ4_1, codes, 1, 0, block));
  EXPECT_TRUE(EncodeBlock(GgmlType::kQ8_0, codes, 1, 0, block));
}

// What quantization costs, by type: the error of normal weights must order as the bits do.
TEST(GgmlBlocks, ErrorsOfQuantizedNormals) {
  std::vector<float> x(256 * 64), back(x.size());
  uint32_t seed = 7;
  for (float& value : x) {
    float sum = 0;
    for (int i = 0; i < 12; ++i) {
      seed = seed * 1664525u + 1013904223u;
      sum += static_cast<float>(seed >> 8) / 16777216.0f;
    }
    value = (sum - 6) * 0.02f;
  }
  const auto error = [&](GgmlType type) {
    std::vector<uint8_t> blocks(static_cast<size_t>(GgmlRowBytes(type, static_cast<int64_t>(x.size()))));
    EXPECT_TRUE(QuantizeBlocks(type, x.data(), static_cast<int64_t>(x.size()), blocks.data()).ok());
    EXPECT_TRUE(DequantizeBlocks(type, blocks.data(), static_cast<int64_t>(x.size()), back.data()).ok());
    double difference = 0, norm = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      difference += (x[i] - back[i]) * (x[i] - back[i]);
      norm += x[i] * x[i];
    }
    return std::sqrt(difference / norm);
  };
  EXPECT_LT(error(GgmlType::kQ4_0), 0.12);
  EXPECT_LT(error(GgmlType::kQ4_K), 0.85 * error(GgmlType::kQ4_0));
  EXPECT_LT(error(GgmlType::kQ5_0), 0.6 * error(GgmlType::kQ4_0));
  EXPECT_LT(error(GgmlType::kQ6_K), 0.5 * error(GgmlType::kQ5_0));
  EXPECT_LT(error(GgmlType::kQ8_0), 0.5 * error(GgmlType::kQ6_K));
}

TEST(GgmlBlocks, QuantizerEdges) {
  std::vector<uint8_t> out(210, 0xAA);
  std::vector<float> zeros(256, 0.0f), all(256);
  for (const GgmlType type : {GgmlType::kQ4_K, GgmlType::kQ6_K}) {
    ASSERT_TRUE(QuantizeBlocks(type, zeros.data(), 256, out.data()).ok());
    ASSERT_TRUE(DequantizeBlocks(type, out.data(), 256, all.data()).ok());
    for (const float value : all) EXPECT_EQ(value, 0.0f);
    std::vector<float> huge(256, 1e30f), tiny(256, 1e-42f);
    huge[3] = 0;
    EXPECT_EQ(GetErrorReason(QuantizeBlocks(type, huge.data(), 256, out.data())).reason, "SCALE_OUT_OF_RANGE");
    EXPECT_TRUE(QuantizeBlocks(type, tiny.data(), 256, out.data()).ok());
    EXPECT_FALSE(QuantizeBlocks(type, zeros.data(), 128, out.data()).ok());
  }
  std::vector<float> x(32, 0.0f), back(32);
  for (const GgmlType type : {GgmlType::kQ4_0, GgmlType::kQ4_1, GgmlType::kQ5_0, GgmlType::kQ8_0}) {
    ASSERT_TRUE(QuantizeBlocks(type, x.data(), 32, out.data()).ok());
    ASSERT_TRUE(DequantizeBlocks(type, out.data(), 32, back.data()).ok());
    for (const float value : back) EXPECT_EQ(value, 0.0f);
    std::vector<float> huge(32, 1e30f), tiny(32, 1e-42f);
    tiny[3] = 0.0f;
    EXPECT_EQ(GetErrorReason(QuantizeBlocks(type, huge.data(), 32, out.data())).reason, "SCALE_OUT_OF_RANGE");
    EXPECT_TRUE(QuantizeBlocks(type, tiny.data(), 32, out.data()).ok());
    EXPECT_FALSE(QuantizeBlocks(type, x.data(), 31, out.data()).ok());
  }
  EXPECT_EQ(GetErrorReason(QuantizeBlocks(GgmlType::kQ5_K, x.data(), 32, out.data())).reason, "CANNOT_WRITE_BLOCKS");
}

TEST(GgmlBlocks, SizesAndRefusals) {
  EXPECT_EQ(GgmlRowBytes(GgmlType::kQ4_K, 512), 288);
  EXPECT_EQ(GgmlRowBytes(GgmlType::kQ8_0, 64), 68);
  EXPECT_EQ(GgmlRowBytes(GgmlType::kBF16, 3), 6);
  EXPECT_EQ(GgmlRowBytes(GgmlType::kQ4_K, 128), -1);
  EXPECT_EQ(GgmlRowBytes(static_cast<GgmlType>(99), 256), -1);
  float out[1];
  EXPECT_EQ(GetErrorReason(DequantizeBlocks(static_cast<GgmlType>(99), nullptr, 0, out)).reason, "UNKNOWN_GGML_TYPE");
  EXPECT_EQ(GetErrorReason(DequantizeBlocks(GgmlType::kQ6_K, nullptr, 32, out)).reason, "ROW_NOT_WHOLE_BLOCKS");
}

TEST(GgmlBlocks, PlainFloats) {
  const uint16_t half[2] = {0x3c00, 0xc000}, brain[2] = {0x3f80, 0xc000};
  float out[2];
  ASSERT_TRUE(DequantizeBlocks(GgmlType::kF16, reinterpret_cast<const uint8_t*>(half), 2, out).ok());
  EXPECT_EQ(out[0], 1.0f);
  EXPECT_EQ(out[1], -2.0f);
  ASSERT_TRUE(DequantizeBlocks(GgmlType::kBF16, reinterpret_cast<const uint8_t*>(brain), 2, out).ok());
  EXPECT_EQ(out[1], -2.0f);
}

}  // namespace
}  // namespace sage
