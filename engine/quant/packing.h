// Packs small integer codes into 32-bit words and back: the dense bitstream shared by GPTQ and compressed-tensors.
//
// Code i takes bits [i * bits, (i + 1) * bits) of the stream, lowest bit first; word w holds stream bits
// [32 w, 32 w + 32). For 3 bits a code may straddle two words (32 codes are 3 words). Words are little-endian in files.
#pragma once

#include <cstdint>

namespace sage {

// Words that `count` codes of `bits` take: ceil(count * bits / 32).
constexpr int64_t PackedWords(int64_t count, int bits) { return (count * bits + 31) / 32; }

// codes: [count] unsigned, only the low `bits` (1..8) count; words: [PackedWords(count, bits)], spare bits are zero.
void PackCodes(const uint8_t* codes, int64_t count, int bits, uint32_t* words);
// `words` needs no alignment: it may point into a mapped file.
void UnpackCodes(const void* words, int64_t count, int bits, uint8_t* codes);

// The same stream down the columns of a [rows, columns] matrix: words is [PackedWords(rows, bits), columns], column c
// of the words holds the codes of column c (zero points of compressed-tensors, qweight of GPTQ).
void PackCodesByColumn(const uint8_t* codes, int64_t rows, int64_t columns, int bits, uint32_t* words);
void UnpackCodesByColumn(const void* words, int64_t rows, int64_t columns, int bits, uint8_t* codes);
// One code of such a matrix.
uint8_t UnpackColumnCode(const void* words, int64_t columns, int bits, int64_t row, int64_t column);

}  // namespace sage
