// AWQ words: the published order, widths of GEMV rows, GEMV_FAST by its published reshapes, and round trips.
#include "engine/quant/awq_layout.h"

#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace sage {
namespace {

std::vector<uint8_t> RandomCodes(int64_t count, std::mt19937& random) {
  std::vector<uint8_t> out(static_cast<size_t>(count));
  for (uint8_t& code : out) code = random() & 15;
  return out;
}

TEST(AwqLayout, GemmWordOfTheReference) {
  // Columns 0..7 with codes 0..7 (quantization.md 1.3 and 5.3); N = 8, one input.
  const std::vector<uint8_t> codes = {0, 1, 2, 3, 4, 5, 6, 7};
  uint32_t word = 0;
  PackAwqGemm(codes.data(), 8, 1, &word);
  EXPECT_EQ(word, 0x75316420u);
  // Column j is read from nibble 0 4 1 5 2 6 3 7.
  const int inverse[8] = {0, 4, 1, 5, 2, 6, 3, 7};
  for (int j = 0; j < 8; ++j) EXPECT_EQ((word >> (4 * inverse[j])) & 15, static_cast<uint32_t>(j));
}

TEST(AwqLayout, GemvWordIsInNaturalOrder) {
  const std::vector<uint8_t> codes = {0, 1, 2, 3, 4, 5, 6, 7};
  uint32_t words[2] = {9, 9};
  PackAwqGemv(codes.data(), 1, 8, 2, words);
  EXPECT_EQ(words[0], 0x76543210u);
  EXPECT_EQ(words[1], 0u);
}

TEST(AwqLayout, ZeroWidths) {
  EXPECT_EQ(AwqZeroWords(4096, 128), 4);
  EXPECT_EQ(AwqZeroWords(11008, 128), 11);
  EXPECT_EQ(AwqZeroWords(11008, 64), 22);
  EXPECT_EQ(AwqZeroWords(4096, 32), 16);
  EXPECT_EQ(AwqZeroWords(128, 64), 2);
  EXPECT_EQ(AwqZeroWords(4096, 16), 0);
  EXPECT_EQ(AwqZeroWords(4096, 96), 0);
}

TEST(AwqLayout, FastPositionsFollowThePublishedReshapes) {
  // Two blocks of four outputs, two strides of 64 inputs. Every element is its own index; the steps are those of 1.3.
  const int64_t N = 8, K = 128;
  std::vector<int64_t> value(static_cast<size_t>(N * K)), next(value.size());
  std::iota(value.begin(), value.end(), 0);
  const auto step = [&](const auto& source_of) {  // within each run of 32
    for (int64_t i = 0; i < N * K; ++i) {
      next[static_cast<size_t>(i)] = value[static_cast<size_t>(i / 32 * 32 + source_of(i % 32))];
    }
    value.swap(next);
  };
  // reshape(4, 4, 2).transpose(1, 0, 2): result [b][a][c] is source [a][b][c].
  step([](int64_t i) { return (i / 2 % 4) * 8 + (i / 8) * 2 + i % 2; });
  // Each eight by 0 2 4 6 1 3 5 7.
  step([](int64_t i) { return i / 8 * 8 + kAwqOrder[i % 8]; });
  // reshape(N / 4, 4, K / 64, 64).transpose(0, 2, 1, 3), then four neighbours share an int16.
  std::vector<uint8_t> seen(value.size(), 0);
  for (int64_t out = 0; out < N * K; ++out) {
    const int64_t block = out / (4 * K), stride = out % (4 * K) / 256, row = out % 256 / 64, at = out % 64;
    const int64_t source = (block * 4 + row) * K + stride * 64 + at;
    const int64_t index = value[static_cast<size_t>(source)];
    const AwqFastPosition position = AwqFastPositionOf(index / K, index % K, K);
    ASSERT_EQ(position.word, out / 4) << index;
    ASSERT_EQ(position.nibble, out % 4) << index;
    seen[static_cast<size_t>(index)] = 1;
  }
  EXPECT_EQ(std::accumulate(seen.begin(), seen.end(), int64_t{0}), N * K);
}

TEST(AwqLayout, FastWordsOfCountingCodes) {
  // Output 0 with code k % 16: moved inputs 0..3 are 0, 8, 16, 24 and the next four 1, 9, 17, 25.
  std::vector<uint8_t> codes(4 * 64, 0);
  for (size_t k = 0; k < 64; ++k) codes[k] = k % 16;
  std::vector<uint16_t> words(64);
  PackAwqFast(codes.data(), 4, 64, words.data());
  EXPECT_EQ(words[0], 0x8080u);
  EXPECT_EQ(words[1], 0x9191u);
  EXPECT_EQ(words[2], 0xA2A2u);
  EXPECT_EQ(words[16], 0u);  // output 1
}

TEST(AwqLayout, RoundTrips) {
  std::mt19937 random(21);
  for (int trial = 0; trial < 20; ++trial) {
    const int64_t N = 8 * (1 + random() % 12), K = 64 * (1 + random() % 6);
    const std::vector<uint8_t> codes = RandomCodes(N * K, random);
    std::vector<uint8_t> back(codes.size());
    // One byte into a buffer: tensors of a file need not be aligned.
    std::vector<uint8_t> shifted(codes.size() / 2 + 1);
    std::vector<uint32_t> words(codes.size() / 8);
    PackAwqGemm(codes.data(), N, K, words.data());
    std::memcpy(shifted.data() + 1, words.data(), words.size() * 4);
    UnpackAwqGemm(shifted.data() + 1, N, K, 0, N, back.data());
    EXPECT_EQ(codes, back);
    const int64_t begin = static_cast<int64_t>(random()) % N,
                  end = begin + static_cast<int64_t>(random()) % (N - begin + 1);
    std::vector<uint8_t> some(static_cast<size_t>((end - begin) * K));
    UnpackAwqGemm(words.data(), N, K, begin, end, some.data());
    EXPECT_TRUE(std::equal(some.begin(), some.end(), codes.begin() + begin * K));
    PackAwqGemv(codes.data(), N, K, K / 8, words.data());
    UnpackAwqGemv(words.data(), N, K, K / 8, back.data());
    EXPECT_EQ(codes, back);
    std::vector<uint16_t> fast(codes.size() / 4);
    PackAwqFast(codes.data(), N, K, fast.data());
    std::memcpy(shifted.data() + 1, fast.data(), fast.size() * 2);
    UnpackAwqFast(shifted.data() + 1, N, K, back.data());
    EXPECT_EQ(codes, back);
  }
}

}  // namespace
}  // namespace sage
