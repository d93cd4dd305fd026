// GPTQ words: published vectors, the zero quirk of v1, and pack/unpack as inverses for random shapes.
#include "engine/quant/gptq_layout.h"

#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "engine/base/status.h"
#include "engine/quant/packing.h"
#include "engine/tensor/float_convert.h"
#include "gtest/gtest.h"

namespace sage {
namespace {

std::vector<uint8_t> RandomCodes(int64_t count, int bits, std::mt19937& random) {
  std::vector<uint8_t> out(static_cast<size_t>(count));
  for (uint8_t& code : out) code = static_cast<uint8_t>(random() & ((1u << bits) - 1u));
  return out;
}

TEST(GptqLayout, PublishedWords) {
  // reference/quantization.md 1.1 and 5.3. Eight outputs so that a column is one of several.
  const std::vector<uint8_t> counting = {0, 1, 2, 3, 4, 5, 6, 7}, worked = {6, 9, 13, 0, 11, 8, 14, 4};
  std::vector<uint8_t> codes;
  for (int n = 0; n < 8; ++n)
    codes.insert(codes.end(), n == 5 ? worked.begin() : counting.begin(), n == 5 ? worked.end() : counting.end());
  uint32_t qweight[8];
  PackGptqCodes(codes.data(), 8, 8, 4, qweight);
  for (int n = 0; n < 8; ++n) EXPECT_EQ(qweight[n], n == 5 ? 0x4E8B0D96u : 0x76543210u);
  std::vector<uint8_t> three(32 * 32);
  for (size_t i = 0; i < three.size(); ++i) three[i] = static_cast<uint8_t>(i % 8);
  std::vector<uint32_t> words(3 * 32);
  PackGptqCodes(three.data(), 32, 32, 3, words.data());
  for (size_t n = 0; n < 32; ++n) {
    EXPECT_EQ(words[n], 0x88FAC688u);
    EXPECT_EQ(words[32 + n], 0xC688FAC6u);
    EXPECT_EQ(words[64 + n], 0xFAC688FAu);
  }
}

TEST(GptqLayout, SymmetricZeroWords) {
  // What GPTQModel writes for symmetric layers (peer-checkpoint-notes.md).
  struct Case {
    int bits;
    std::vector<uint32_t> v1, v2;
  };
  const Case cases[] = {{2, {0x55555555u}, {0xAAAAAAAAu}},
                        {3, {0xDB6DB6DBu, 0xB6DB6DB6u, 0x6DB6DB6Du}, {0x24924924u, 0x49249249u, 0x92492492u}},
                        {4, {0x77777777u}, {0x88888888u}},
                        {8, {0x7F7F7F7Fu}, {0x80808080u}}};
  for (const Case& c : cases) {
    const int64_t N = GptqUnit(c.bits);
    const std::vector<uint8_t> zeros(static_cast<size_t>(N), static_cast<uint8_t>(1 << (c.bits - 1)));
    std::vector<uint32_t> words(c.v1.size());
    ASSERT_TRUE(PackGptqZeros(zeros.data(), N, 1, c.bits, GptqZeros::kV1, words.data()).ok());
    EXPECT_EQ(words, c.v1) << c.bits;
    ASSERT_TRUE(PackGptqZeros(zeros.data(), N, 1, c.bits, GptqZeros::kV2, words.data()).ok());
    EXPECT_EQ(words, c.v2) << c.bits;
  }
}

TEST(GptqLayout, UnsafeZerosAreRefusedInV1AndMaskedWhenRead) {
  for (const int bits : {2, 3, 4, 8}) {
    const int64_t N = 32;
    std::vector<uint8_t> zeros(static_cast<size_t>(N), 1);
    std::vector<uint32_t> words(static_cast<size_t>(PackedWords(N, bits)));
    EXPECT_TRUE(PackGptqZeros(zeros.data(), N, 1, bits, GptqZeros::kV1, words.data()).ok());
    zeros[19] = 0;
    const absl::Status status = PackGptqZeros(zeros.data(), N, 1, bits, GptqZeros::kV1, words.data());
    EXPECT_EQ(GetErrorReason(status).reason, "UNSAFE_ZERO");
    EXPECT_NE(std::string(status.message()).find("output 19, group 0"), std::string::npos) << status;
    EXPECT_TRUE(PackGptqZeros(zeros.data(), N, 1, bits, GptqZeros::kV2, words.data()).ok());
    // A file whose fields are all ones holds zeros of 0 in v1 and of the largest code in v2.
    std::fill(words.begin(), words.end(), 0xFFFFFFFFu);
    std::vector<uint8_t> back(zeros.size());
    UnpackGptqZeros(words.data(), N, 1, bits, GptqZeros::kV1, back.data());
    EXPECT_EQ(back, std::vector<uint8_t>(back.size(), 0));
    UnpackGptqZeros(words.data(), N, 1, bits, GptqZeros::kV2, back.data());
    EXPECT_EQ(back, std::vector<uint8_t>(back.size(), static_cast<uint8_t>((1 << bits) - 1)));
  }
}

TEST(GptqLayout, CodesRoundTrip) {
  std::mt19937 random(11);
  for (const int bits : {2, 3, 4, 8}) {
    for (int trial = 0; trial < 12; ++trial) {
      const int64_t unit = GptqUnit(bits);
      const int64_t N = unit * (1 + random() % 6), K = unit * (1 + random() % 40);
      ASSERT_TRUE(CheckGptqShape(bits, N, K).ok());
      const std::vector<uint8_t> codes = RandomCodes(N * K, bits, random);
      std::vector<uint32_t> words(static_cast<size_t>(PackedWords(K, bits) * N));
      PackGptqCodes(codes.data(), N, K, bits, words.data());
      // One byte into a buffer: tensors of a file need not be aligned.
      std::vector<uint8_t> shifted(words.size() * 4 + 1), back(codes.size());
      std::memcpy(shifted.data() + 1, words.data(), words.size() * 4);
      UnpackGptqCodes(shifted.data() + 1, N, K, bits, 0, N, back.data());
      EXPECT_EQ(codes, back) << bits << " bits, N=" << N << ", K=" << K;
      const int64_t begin = static_cast<int64_t>(random()) % N,
                    end = begin + static_cast<int64_t>(random()) % (N - begin + 1);
      std::vector<uint8_t> some(static_cast<size_t>((end - begin) * K));
      UnpackGptqCodes(words.data(), N, K, bits, begin, end, some.data());
      EXPECT_TRUE(std::equal(some.begin(), some.end(), codes.begin() + begin * K));
    }
  }
}

TEST(GptqLayout, ZerosRoundTripAndVersionsDifferByOne) {
  std::mt19937 random(12);
  for (const int bits : {2, 3, 4, 8}) {
    const int64_t N = 96, G = 5;
    std::vector<uint8_t> zeros = RandomCodes(N * G, bits, random), back(zeros.size());
    std::vector<uint32_t> v1(static_cast<size_t>(G * PackedWords(N, bits))), v2(v1.size());
    ASSERT_TRUE(PackGptqZeros(zeros.data(), N, G, bits, GptqZeros::kV2, v2.data()).ok());
    UnpackGptqZeros(v2.data(), N, G, bits, GptqZeros::kV2, back.data());
    EXPECT_EQ(zeros, back);
    for (uint8_t& zero : zeros) zero = std::max<uint8_t>(zero, 1);
    ASSERT_TRUE(PackGptqZeros(zeros.data(), N, G, bits, GptqZeros::kV2, v2.data()).ok());
    ASSERT_TRUE(PackGptqZeros(zeros.data(), N, G, bits, GptqZeros::kV1, v1.data()).ok());
    UnpackGptqZeros(v1.data(), N, G, bits, GptqZeros::kV1, back.data());
    EXPECT_EQ(zeros, back);
    if (bits == 3) continue;  // fields straddle words, so the published word constants do not apply
    const uint32_t ones = bits == 2 ? 0x55555555u : bits == 4 ? 0x11111111u : 0x01010101u;
    for (size_t i = 0; i < v1.size(); ++i) EXPECT_EQ(v1[i] + ones, v2[i]);
  }
}

TEST(GptqLayout, SizesThatFillNoWordsAreRefused) {
  EXPECT_TRUE(CheckGptqShape(4, 8, 8).ok());
  EXPECT_TRUE(CheckGptqShape(3, 32, 64).ok());
  for (const auto& [bits, N, K] : {std::tuple{4, 12, 8}, {4, 8, 12}, {3, 32, 48}, {2, 8, 16}, {8, 2, 4}, {8, 0, 4}}) {
    EXPECT_EQ(GetErrorReason(CheckGptqShape(bits, N, K)).reason, "SIZE_NOT_WHOLE_WORDS") << bits << " " << N;
  }
  EXPECT_EQ(GetErrorReason(CheckGptqShape(5, 32, 32)).reason, "BITS_NOT_SUPPORTED");
}

}  // namespace
}  // namespace sage
