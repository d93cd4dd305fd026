// The words of a GPTQ checkpoint: codes packed along the inputs, zero points along the outputs, for 2, 3, 4 and 8 bits.
//
//   qweight  I32 [K b / 32, N]  column n is the dense bitstream of output n's codes, lowest bit first
//   qzeros   I32 [G, N b / 32]  row g is the same stream of the group's zero points
// Codes and zeros are unsigned; a word is little-endian in files. "gptq" (v1) files store zero - 1 and every reader
// adds one again, "gptq_v2" files store the zero itself. Source: reference/quantization.md 1.1.
#pragma once

#include <cstdint>

#include "absl/status/status.h"

namespace sage {

enum class GptqZeros { kV1, kV2 };

constexpr bool IsGptqBits(int bits) { return bits == 2 || bits == 3 || bits == 4 || bits == 8; }
// Codes that fill whole words: 16, 32 (three words), 8 or 4.
constexpr int64_t GptqUnit(int bits) { return bits == 3 ? 32 : 32 / bits; }

// Refuses sizes whose codes do not fill whole words along both axes.
absl::Status CheckGptqShape(int bits, int64_t N, int64_t K);

// codes [N, K]; qweight [K * bits / 32, N].
void PackGptqCodes(const uint8_t* codes, int64_t N, int64_t K, int bits, uint32_t* qweight);
// Outputs [n_begin, n_end) as [n_end - n_begin, K]. `qweight` needs no alignment.
void UnpackGptqCodes(const void* qweight, int64_t N, int64_t K, int bits, int64_t n_begin, int64_t n_end,
                     uint8_t* codes);

// zeros [N, G]; qzeros [G, N * bits / 32]. INVALID_ARGUMENT (UNSAFE_ZERO) for a zero of 0 in v1: it would be stored as
// -1, which readers understand in three different ways.
absl::Status PackGptqZeros(const uint8_t* zeros, int64_t N, int64_t G, int bits, GptqZeros version, uint32_t* qzeros);
// v1 zeros are masked after one is added: stored 2^bits - 1 means 0.
void UnpackGptqZeros(const void* qzeros, int64_t N, int64_t G, int bits, GptqZeros version, uint8_t* zeros);

}  // namespace sage
