// The words of AWQ checkpoints: 4-bit codes in AutoAWQ's three layouts. Codes and zeros are unsigned, little-endian.
//
// GEMM       qweight I32 [K, N / 8], qzeros I32 [G, N / 8], scales F16 [G, N]: words along the outputs, nibble i of
//            word c is output 8 c + order[i], order = 0 2 4 6 1 3 5 7; a zero is stored as it is.
// GEMV       qweight I32 [N, K / 8], qzeros I32 [N, ZW], scales F16 [N, 8 ZW]: natural order along the inputs; groups
//            past G are zero.
// GEMV_FAST  qweight I16 [N / 4, K]; scales and qzeros F16 [8 ZW, N], qzeros = -(scale * zero). Four outputs share an
//            int16; see AwqFastPosition.
// Source: reference/quantization.md 1.3.
#pragma once

#include <cstdint>

namespace sage {

inline constexpr int kAwqOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};

// codes [N, columns] -> words [columns, N / 8]; N % 8 == 0. Used for codes (columns = K) and for zeros (columns = G).
void PackAwqGemm(const uint8_t* codes, int64_t N, int64_t columns, uint32_t* words);
// Outputs [n_begin, n_end) as [n_end - n_begin, columns]. `words` needs no alignment.
void UnpackAwqGemm(const void* words, int64_t N, int64_t columns, int64_t n_begin, int64_t n_end, uint8_t* codes);

// Words of a GEMV row of zeros (ZW above): G rounded up to whole words, and to 2 or 4 of them for groups of 64 or 32.
// 0 for group sizes that the layout does not have.
int64_t AwqZeroWords(int64_t K, int64_t group_size);
// codes [N, columns] -> words [N, row_words], spare nibbles zero; columns <= 8 * row_words.
void PackAwqGemv(const uint8_t* codes, int64_t N, int64_t columns, int64_t row_words, uint32_t* words);
void UnpackAwqGemv(const void* words, int64_t N, int64_t columns, int64_t row_words, uint8_t* codes);

// Where GEMV_FAST keeps a code: index of the int16 in [N / 4, K], and which of its four nibbles.
struct AwqFastPosition {
  int64_t word = 0;
  int nibble = 0;
};
AwqFastPosition AwqFastPositionOf(int64_t n, int64_t k, int64_t K);
// codes [N, K] -> words [N / 4, K]; N % 4 == 0 and K % 64 == 0.
void PackAwqFast(const uint8_t* codes, int64_t N, int64_t K, uint16_t* words);
void UnpackAwqFast(const void* words, int64_t N, int64_t K, uint8_t* codes);

}  // namespace sage
