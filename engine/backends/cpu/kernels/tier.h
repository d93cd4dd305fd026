// What one instruction-set tier offers: plain functions over pointers, compiled once for each tier from the same
// source.
//
// Every function gives the same bits in every tier: sixteen lanes, fixed lane order, FMA where it is written. Only
// tier_<name>.cc is compiled for an instruction set; everything that allocates or owns memory stays outside these
// files.
#pragma once

#include <cstdint>

namespace sage::cpu {

// Activations as int16 fixed point in blocks along K: value = scale * q. Blocks hold `padded` entries (a multiple of 4;
// a multiple of 32 for ggml blocks), zero past `block`. Row layout: [blocks][padded] int16.
struct QuantizedRows {
  const int16_t* codes;  // [M][blocks * padded]
  const float* scale;    // [M][blocks]
  const int32_t* sum;    // [M][blocks] sum of codes
  int64_t blocks;
  int64_t padded;
};

// Integer weights in panels of 16 outputs: panel p, block b, then for each 4 inputs 16 rows x (k, k+1) and 16 rows x
// (k+2, k+3): 64 bytes of int8, or 32 bytes whose low nibbles are the first pair and high nibbles the second.
struct PanelWeights {
  const uint8_t* codes;  // [panels][blocks][padded / 4][64 or 32]
  const float* scale;    // [panels][G][16]
  const float* offset;   // [panels][G][16] or null
  int64_t blocks;
  int64_t padded;
  int64_t blocks_per_group;
  int bias;  // subtracted from stored codes (8 for nibbles, 0 for int8)
  bool nibbles;
};

// Float codes in panels of 16 outputs, cut along K into segments that lie in one scale block for every row. A segment
// holds for each two inputs 32 bytes (input k of 16 outputs, then k + 1), or 16 bytes whose low nibbles are input k and
// high nibbles input k + 1; an odd last input has 16 bytes of its own.
enum class FloatCode : uint8_t { kE4M3, kE5M2, kTable16 };
struct FloatPanels {
  FloatCode code;
  const uint8_t* codes;   // [panels][panel_bytes]
  const float* scale;     // [panels][scales][16]; e4m3: times 2^8, see simd_generic.h
  const float* table;     // [16], kTable16 only
  const int32_t* begin;   // [segments + 1] first inputs
  const int32_t* column;  // [segments] which of the scales
  int64_t segments;
  int64_t scales;
  int64_t panel_bytes;
};

struct BlockRows {
  const uint8_t* data;  // [N][K / 32] ggml blocks
  int64_t row_bytes;
};

struct AttentionTask {
  const float* q;        // [rows of this task][group][D]: see attention_impl.h
  int64_t q_row_stride;  // floats between rows of the batch
  float* out;
  int64_t out_row_stride;
  int group;  // query heads of this kv head
  int D;
  float scale;
  int64_t rows;
  int64_t first_position;  // of row 0
  int64_t window;
  const uint8_t* arena;
  const int32_t* pages;
  int64_t page_bytes, head_offset, value_offset;  // bytes: of this kv head in a page, of V within the head
  int page_tokens;
  float* scratch;  // attention_scratch_floats(group, D)
};

struct TierFns {
  const char* name;
  // out[m * out_stride + n] for n in [n_begin, n_end): dot over K in 16 lanes. `weights` [N, K].
  void (*dense_f32)(const float* x, int64_t x_stride, int64_t M, int64_t K, const void* weights, int64_t n_begin,
                    int64_t n_end, const float* bias, float* out, int64_t out_stride);
  void (*dense_f16)(const float* x, int64_t x_stride, int64_t M, int64_t K, const void* weights, int64_t n_begin,
                    int64_t n_end, const float* bias, float* out, int64_t out_stride);
  void (*dense_bf16)(const float* x, int64_t x_stride, int64_t M, int64_t K, const void* weights, int64_t n_begin,
                     int64_t n_end, const float* bias, float* out, int64_t out_stride);
  // One row of x [K] into int16 blocks of `block` inputs.
  void (*quantize_row)(const float* x, int64_t K, int64_t block, int64_t padded, int16_t* codes, float* scale,
                       int32_t* sum);
  // Panels [p_begin, p_end) for all M rows; the last panel may be short of N.
  void (*panels)(const QuantizedRows& x, int64_t M, const PanelWeights& w, int64_t p_begin, int64_t p_end, int64_t N,
                 const float* bias, float* out, int64_t out_stride);
  // Panels [p_begin, p_end) of float codes against f32 rows.
  void (*float_panels)(const float* x, int64_t x_stride, int64_t M, const FloatPanels& w, int64_t p_begin,
                       int64_t p_end, int64_t N, const float* bias, float* out, int64_t out_stride);
  void (*blocks_q4_0)(const QuantizedRows& x, int64_t M, const BlockRows& w, int64_t n_begin, int64_t n_end,
                      const float* bias, float* out, int64_t out_stride);
  void (*blocks_q4_1)(const QuantizedRows& x, int64_t M, const BlockRows& w, int64_t n_begin, int64_t n_end,
                      const float* bias, float* out, int64_t out_stride);
  void (*blocks_q8_0)(const QuantizedRows& x, int64_t M, const BlockRows& w, int64_t n_begin, int64_t n_end,
                      const float* bias, float* out, int64_t out_stride);
  void (*attend_f32)(const AttentionTask& task);
  void (*attend_bf16)(const AttentionTask& task);
  void (*rms_norm_row)(const float* x, const float* weight, float eps, int64_t K, float* y);
  void (*add)(float* x, const float* y, int64_t count);
  void (*silu_mul_row)(const float* gate, const float* up, int64_t F, float* out);
  void (*rope_row)(float* x, int64_t D, const float* cos, const float* sin, bool interleaved);
};

extern const TierFns kGenericTier;
extern const TierFns kAvx2Tier;
extern const TierFns kAvx512Tier;

// Floats of scratch one attention task needs.
int64_t AttentionScratchFloats(int group, int D);

}  // namespace sage::cpu
