// Forms that activations take before a product, and what converting them needs.
//
//   kF16   16 bits: the row times the power of two that brings its largest value to 2^14 .. 2^15, rounded half to even:
//          no value overflows, eleven bits are kept, and the token's scale takes the power back exactly
//   kInt8  int8: round(x / scale) + zero, the scale the row's largest magnitude over 127.5, or static
//   kE4M3  e4m3: x / scale, saturating; one scale a row, a scale for each chunk of inputs, or static
// `chunk` gets, for each chunk of inputs, the sum of the stored values (kF16, kInt8) or the chunk's scale (kE4M3
// groups).
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/backends/cuda/kernels/linear_layout.h"

namespace sage::cuda {

enum class RowForm : int { kF16, kInt8, kE4M3 };
enum class RowSource : int { kPlain, kRmsNorm, kSiluMul };

struct PrepareArgs {
  const float* x = nullptr;  // [M, K]; gate for kSiluMul
  int64_t x_stride = 0;
  const float* other = nullptr;  // [K] norm weight, or [M, K] up
  int64_t other_stride = 0;
  float eps = 0;                   // kRmsNorm
  const int32_t* order = nullptr;  // [places]: the input at each place, -1 for none
  int K = 0, places = 0, k_blocks = 0;
  int tiles = 0;                 // token tiles
  int chunks = 0;                // of a k block; 0: no sums or scales wanted
  int64_t scale_group = 0;       // inputs that share a scale (kE4M3); 0: the row
  float static_scale = 0;        // 0: from the data
  int zero = 0;                  // static zero point (kInt8)
  int64_t row_bytes = 0;         // bytes a code: rows one after the other, K of them; 0: operand B
  uint8_t* codes = nullptr;      // linear_layout.h
  float* token_scale = nullptr;  // [tiles * 8]
  float* chunk = nullptr;        // [k_blocks * chunks, tiles * 8]
};

constexpr int kPrepareThreads = 256;
constexpr int kPrepareInputs = 16;  // that a thread converts at a time
constexpr float kMostE4M3 = 448.0f, kLeastTokenScale = 1.0f / (448.0f * 512.0f), kLeastGroupAmax = 1e-10f;

// What is left to do after a product of bytes by a library.
struct FinishArgs {
  const void* sums = nullptr;  // [M, N] int32 or f32; may be `out`
  int64_t sums_stride = 0;
  const float* token_scale = nullptr;    // [M]
  const float* channel_scale = nullptr;  // [N]
  const float* bias = nullptr;           // [N] or null
  float* out = nullptr;                  // [M, N]
  int64_t out_stride = 0;
  int64_t N = 0;
  bool integers = false;
};

// Bytes of shared memory: eight words, then a sum for every 16 places.
inline size_t PrepareShared(int k_blocks) {
  return (kPrepareThreads / 32 + static_cast<size_t>(k_blocks) * (kBlockInputs / kPrepareInputs)) * sizeof(float);
}

}  // namespace sage::cuda
