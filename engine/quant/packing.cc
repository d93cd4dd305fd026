// The dense bitstream of packed integer codes, along rows and down columns.
#include "engine/quant/packing.h"

#include <cstring>

namespace sage {
namespace {

uint32_t LoadWord(const void* words, int64_t index) {
  uint32_t word;
  std::memcpy(&word, static_cast<const uint8_t*>(words) + index * 4, sizeof(word));
  return word;
}

// Code at stream position `i` when consecutive words lie `stride` words apart, the first at `first`.
uint8_t CodeAt(const void* words, int64_t first, int64_t stride, int bits, int64_t i) {
  const int64_t bit = i * bits;
  const int shift = static_cast<int>(bit % 32);
  const int64_t word = bit / 32;
  uint32_t value = LoadWord(words, first + word * stride) >> shift;
  if (shift + bits > 32) value |= LoadWord(words, first + (word + 1) * stride) << (32 - shift);
  return static_cast<uint8_t>(value & ((1u << bits) - 1u));
}

void PutCode(uint32_t* words, int64_t first, int64_t stride, int bits, int64_t i, uint8_t code) {
  const uint32_t value = code & ((1u << bits) - 1u);
  const int64_t bit = i * bits;
  const int shift = static_cast<int>(bit % 32);
  const int64_t word = bit / 32;
  words[first + word * stride] |= value << shift;
  if (shift + bits > 32) words[first + (word + 1) * stride] |= value >> (32 - shift);
}

}  // namespace

void PackCodes(const uint8_t* codes, int64_t count, int bits, uint32_t* words) {
  std::memset(words, 0, static_cast<size_t>(PackedWords(count, bits)) * sizeof(uint32_t));
  for (int64_t i = 0; i < count; ++i) PutCode(words, 0, 1, bits, i, codes[i]);
}

void UnpackCodes(const void* words, int64_t count, int bits, uint8_t* codes) {
  const auto* bytes = static_cast<const uint8_t*>(words);
  if (bits == 8) {
    std::memcpy(codes, bytes, static_cast<size_t>(count));
    return;
  }
  if (bits == 4) {
    for (int64_t i = 0; i < count; ++i) codes[i] = (i & 1) ? bytes[i / 2] >> 4 : bytes[i / 2] & 15;
    return;
  }
  for (int64_t i = 0; i < count; ++i) codes[i] = CodeAt(words, 0, 1, bits, i);
}

void PackCodesByColumn(const uint8_t* codes, int64_t rows, int64_t columns, int bits, uint32_t* words) {
  std::memset(words, 0, static_cast<size_t>(PackedWords(rows, bits) * columns) * sizeof(uint32_t));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) PutCode(words, c, columns, bits, r, codes[r * columns + c]);
  }
}

void UnpackCodesByColumn(const void* words, int64_t rows, int64_t columns, int bits, uint8_t* codes) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) codes[r * columns + c] = CodeAt(words, c, columns, bits, r);
  }
}

uint8_t UnpackColumnCode(const void* words, int64_t columns, int bits, int64_t row, int64_t column) {
  return CodeAt(words, column, columns, bits, row);
}

}  // namespace sage
