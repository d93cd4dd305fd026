// AWQ words from codes and back.
#include "engine/quant/awq_layout.h"

#include <algorithm>
#include <cstring>

#include "engine/quant/packing.h"

namespace sage {

void PackAwqGemm(const uint8_t* codes, int64_t N, int64_t columns, uint32_t* words) {
  for (int64_t k = 0; k < columns; ++k) {
    for (int64_t c = 0; c < N / 8; ++c) {
      uint32_t word = 0;
      for (int i = 0; i < 8; ++i) word |= (codes[(8 * c + kAwqOrder[i]) * columns + k] & 15u) << (4 * i);
      words[k * (N / 8) + c] = word;
    }
  }
}

void UnpackAwqGemm(const void* words, int64_t N, int64_t columns, int64_t n_begin, int64_t n_end, uint8_t* codes) {
  const auto* bytes = static_cast<const uint8_t*>(words);
  for (int64_t k = 0; k < columns; ++k) {
    for (int64_t c = n_begin / 8; c * 8 < n_end; ++c) {
      uint32_t word;
      std::memcpy(&word, bytes + (k * (N / 8) + c) * 4, 4);
      for (int i = 0; i < 8; ++i, word >>= 4) {
        const int64_t n = 8 * c + kAwqOrder[i];
        if (n >= n_begin && n < n_end) codes[(n - n_begin) * columns + k] = word & 15;
      }
    }
  }
}

int64_t AwqZeroWords(int64_t K, int64_t group_size) {
  const int64_t multiple = group_size >= 128 ? 1 : group_size == 64 ? 2 : group_size == 32 ? 4 : 0;
  if (multiple == 0 || K < 1) return 0;
  const int64_t groups = (K + group_size - 1) / group_size, base = (groups + 7) / 8;
  return (base + multiple - 1) / multiple * multiple;
}

void PackAwqGemv(const uint8_t* codes, int64_t N, int64_t columns, int64_t row_words, uint32_t* words) {
  std::memset(words, 0, static_cast<size_t>(N * row_words) * sizeof(uint32_t));
  for (int64_t n = 0; n < N; ++n) PackCodes(codes + n * columns, columns, 4, words + n * row_words);
}

void UnpackAwqGemv(const void* words, int64_t N, int64_t columns, int64_t row_words, uint8_t* codes) {
  const auto* bytes = static_cast<const uint8_t*>(words);
  for (int64_t n = 0; n < N; ++n) UnpackCodes(bytes + n * row_words * 4, columns, 4, codes + n * columns);
}

AwqFastPosition AwqFastPositionOf(int64_t n, int64_t k, int64_t K) {
  // Input 8 a + 2 b + c of a run of 32 moves to 8 b + 4 c + a.
  const int64_t run = k % 64 / 32 * 32, a = k % 32 / 8, b = k % 8 / 2, c = k % 2;
  const int64_t moved = run + 8 * b + 4 * c + a;
  // 64 inputs of four outputs are 64 int16: sixteen of each output in turn, four consecutive moved inputs in each.
  return {n / 4 * K + k / 64 * 64 + n % 4 * 16 + moved / 4, static_cast<int>(moved % 4)};
}

void PackAwqFast(const uint8_t* codes, int64_t N, int64_t K, uint16_t* words) {
  std::memset(words, 0, static_cast<size_t>(N / 4 * K) * sizeof(uint16_t));
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k = 0; k < K; ++k) {
      const AwqFastPosition at = AwqFastPositionOf(n, k, K);
      words[at.word] = static_cast<uint16_t>(words[at.word] | ((codes[n * K + k] & 15) << (4 * at.nibble)));
    }
  }
}

void UnpackAwqFast(const void* words, int64_t N, int64_t K, uint8_t* codes) {
  const auto* bytes = static_cast<const uint8_t*>(words);
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k = 0; k < K; ++k) {
      const AwqFastPosition at = AwqFastPositionOf(n, k, K);
      uint16_t word;
      std::memcpy(&word, bytes + at.word * 2, 2);
      codes[n * K + k] = static_cast<uint8_t>((word >> (4 * at.nibble)) & 15);
    }
  }
}

}  // namespace sage
