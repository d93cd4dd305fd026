// The dense bitstream: published words, and pack/unpack as inverses.
#include "engine/quant/packing.h"

#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace sage {
namespace {

TEST(Packing, PublishedWords) {
  // reference/quantization.md 1.1 and 5.3.
  const std::vector<uint8_t> worked = {6, 9, 13, 0, 11, 8, 14, 4};
  uint32_t word = 1;
  PackCodes(worked.data(), 8, 4, &word);
  EXPECT_EQ(word, 0x4E8B0D96u);
  const std::vector<uint8_t> counting = {0, 1, 2, 3, 4, 5, 6, 7};
  PackCodes(counting.data(), 8, 4, &word);
  EXPECT_EQ(word, 0x76543210u);
  std::vector<uint8_t> three(32);
  for (int i = 0; i < 32; ++i) three[static_cast<size_t>(i)] = static_cast<uint8_t>(i % 8);
  uint32_t words[3];
  PackCodes(three.data(), 32, 3, words);
  EXPECT_EQ(words[0], 0x88FAC688u);
  EXPECT_EQ(words[1], 0xC688FAC6u);
  EXPECT_EQ(words[2], 0xFAC688FAu);
}

TEST(Packing, RowsRoundTrip) {
  std::mt19937 random(7);
  for (const int bits : {2, 3, 4, 5, 6, 7, 8}) {
    for (const int64_t count : {1, 7, 31, 32, 33, 95, 96, 257}) {
      std::vector<uint8_t> codes(static_cast<size_t>(count)), back(codes.size(), 0xEE);
      for (uint8_t& code : codes) code = static_cast<uint8_t>(random() & ((1u << bits) - 1u));
      std::vector<uint32_t> words(static_cast<size_t>(PackedWords(count, bits)), 0xFFFFFFFFu);
      PackCodes(codes.data(), count, bits, words.data());
      UnpackCodes(words.data(), count, bits, back.data());
      EXPECT_EQ(codes, back) << bits << " bits, " << count << " codes";
      std::vector<uint32_t> again(words.size());
      PackCodes(back.data(), count, bits, again.data());
      EXPECT_EQ(words, again);  // spare bits are zero both times
    }
  }
}

TEST(Packing, ColumnsRoundTrip) {
  std::mt19937 random(8);
  for (const int bits : {2, 3, 4, 8}) {
    for (const int64_t rows : {1, 8, 13, 64}) {
      const int64_t columns = 5;
      std::vector<uint8_t> codes(static_cast<size_t>(rows * columns)), back(codes.size());
      for (uint8_t& code : codes) code = static_cast<uint8_t>(random() & ((1u << bits) - 1u));
      std::vector<uint32_t> words(static_cast<size_t>(PackedWords(rows, bits) * columns));
      PackCodesByColumn(codes.data(), rows, columns, bits, words.data());
      UnpackCodesByColumn(words.data(), rows, columns, bits, back.data());
      EXPECT_EQ(codes, back);
      EXPECT_EQ(UnpackColumnCode(words.data(), columns, bits, rows - 1, 3),
                codes[static_cast<size_t>((rows - 1) * 5 + 3)]);
    }
  }
}

TEST(Packing, ColumnOrderIsLowFirstDownTheRows) {
  const std::vector<uint8_t> codes = {1, 9, 2, 10, 3, 11};  // [3, 2]
  uint32_t words[2];
  PackCodesByColumn(codes.data(), 3, 2, 4, words);
  EXPECT_EQ(words[0], 0x321u);
  EXPECT_EQ(words[1], 0xBA9u);
}

}  // namespace
}  // namespace sage
