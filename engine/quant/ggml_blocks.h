// ggml's quantized blocks: sizes, exact dequantization, reference quantizers, and the lossless split of every type into
// int8 codes with a scale (and an offset) for each 16 or 32 values. Layouts: ggml-common.h; all fields little-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "engine/tensor/gguf_file.h"

namespace sage {

struct GgmlTypeInfo {
  GgmlType type;
  std::string_view name;  // "q4_0"
  int block = 1;          // values of one block
  int bytes = 0;          // bytes of one block
  int group = 0;          // values that share one scale; 0 for the plain float types
  bool has_offset = false;
};

// Null for a type this engine does not read.
const GgmlTypeInfo* FindGgmlType(GgmlType type);
const GgmlTypeInfo* FindGgmlType(std::string_view name);
// Bytes of a row of K values, or -1 when the type is unknown or K is no multiple of its block.
int64_t GgmlRowBytes(GgmlType type, int64_t K);

// `n` values (a multiple of the block) as f32, the bits of ggml's own dequantize_row. Float types are converted.
// INVALID_ARGUMENT on an unknown type or a count that is no multiple of the block.
absl::Status DequantizeBlocks(GgmlType type, const uint8_t* src, int64_t n, float* out);

// The same values taken apart: value i = scale[i / group] * code[i] (+ offset[i / group]), product rounded to f32, then
// sum. codes: [n]; scale, offset: [n / group]; offset may be null for types without one. Every quantized type.
absl::Status RepackToAffine8(GgmlType type, const uint8_t* src, int64_t n, int8_t* codes, float* scale, float* offset);

// ggml's reference quantizers of Q4_0, Q4_1, Q5_0, Q8_0, Q4_K and Q6_K: `n` (a multiple of the block) finite values.
// INVALID_ARGUMENT when another type is asked for or a scale does not fit f16.
absl::Status QuantizeBlocks(GgmlType type, const float* values, int64_t n, uint8_t* out);

// One block of 32 values codes[i] * scale as Q4_0, Q4_1 (codes are stored from `zero` up) or Q8_0, without rounding.
// False when the type does not hold exactly these: a scale (or scale * zero) that f16 rounds, or a code out of range.
bool EncodeBlock(GgmlType type, const int16_t* codes, float scale, int zero, uint8_t* out);

}  // namespace sage
