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

TEST(GgmlBlocks, QuantizerEdges) {
  std::vector<uint8_t> out(34, 0xAA);
  std::vector<float> x(32, 0.0f), back(32);
  for (const GgmlType type : {GgmlType::kQ4_0, GgmlType::kQ4_1, GgmlType::kQ8_0}) {
    ASSERT_TRUE(QuantizeBlocks(type, x.data(), 32, out.data()).ok());
    ASSERT_TRUE(DequantizeBlocks(type, out.data(), 32, back.data()).ok());
    for (const float value : back) EXPECT_EQ(value, 0.0f);
    std::vector<float> huge(32, 1e30f), tiny(32, 1e-42f);
    tiny[3] = 0.0f;
    EXPECT_EQ(GetErrorReason(QuantizeBlocks(type, huge.data(), 32, out.data())).reason, "SCALE_OUT_OF_RANGE");
    EXPECT_TRUE(QuantizeBlocks(type, tiny.data(), 32, out.data()).ok());
    EXPECT_FALSE(QuantizeBlocks(type, x.data(), 31, out.data()).ok());
  }
  EXPECT_EQ(GetErrorReason(QuantizeBlocks(GgmlType::kQ4_K, x.data(), 32, out.data())).reason, "CANNOT_WRITE_BLOCKS");
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
