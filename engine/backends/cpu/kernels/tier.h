// What one instruction-set tier offers: plain functions over pointers, compiled once for each tier from the same
// source.
//
// Every function gives the same bits in every tier: sixteen lanes, fixed lane order, FMA where it is written. Only
// tier_<name>.cc is compiled for an instruction set; everything that allocates or owns memory stays outside these
// files.
#pragma once

#include <cstdint>

namespace sage::cpu {

// Activations as integers in blocks along K: value = scale * code, int16 fixed point, or int8 with a zero point. A
// block of a row is `row_bytes` long (a multiple of 8 bytes), zero past its inputs. The rows of one
// block lie together: a tile of rows is one run of memory.
struct QuantizedRows {
  const uint8_t* codes;  // [blocks][M][row_bytes]
  const float* scale;    // [blocks][M]
  const int32_t* sum;    // [blocks][M] sum of codes, less the zero point each
  const float* total;    // [blocks][M] scale * sum
  int64_t M, blocks, row_bytes;
};
// Where one row goes: block b at codes + b * rows * row_bytes, scale[b * rows], sum[b * rows], total[b * rows].
struct RowCodes {
  uint8_t* codes;
  float* scale;
  int32_t* sum;
  float* total;
  int64_t rows, row_bytes;
};

// Integer weights in panels of 16 outputs (rows r): panel p, block b, then
//   kInt8Pairs    64 bytes for 4 inputs: 16 rows x (k, k+1), 16 rows x (k+2, k+3), signed
//   kNibblePairs  32 bytes for 4 inputs: the first pairs in the low nibbles, the second in the high ones, codes + 8
//   kInt8Quads    64 bytes for 4 inputs: 16 rows x (k .. k+3), codes + 128
//   kNibbleQuads  64 bytes for 8 inputs: k .. k+3 in the low nibbles, k+4 .. k+7 in the high ones, codes + 8
// Pairs meet int16 activations, quads int8.
enum class PanelLayout : uint8_t { kInt8Pairs, kNibblePairs, kInt8Quads, kNibbleQuads };
struct PanelWeights {
  PanelLayout layout;
  const uint8_t* codes;
  bool half;             // scale and offset are f16, else f32
  const void* scale;     // [panels][groups][16]
  const void* offset;    // [panels][groups][16] or null
  const int32_t* shift;  // [panels][blocks][16] minus the activations' zero point times the stored codes' sum, or null
  int64_t blocks;
  int64_t groups;
  int64_t blocks_per_group;
  int bias;  // what stored codes have too much: 8, 128 or 0
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

// What a KV page holds; values are eight bits with scales, or floats.
enum class KvFormat { kF32, kBF16, kE4M3, kE5M2, kInt8, kInt8Channel };
constexpr int kKvFormats = 6;

// Where things lie in a page: bytes from its begin for kv head 0; head h is `head` further each. Positions of a page
// lie in blocks of 16. K: [page_tokens / 16][Dp][16 positions]; V: [page_tokens][Dp]; Dp is D padded to 16.
struct KvOffsets {
  int64_t page, head;        // bytes of a page, of one head in it
  int64_t v;                 // K is at 0
  int64_t k_scale, v_scale;  // [page_tokens] f32 (eight-bit formats)
  int64_t k_shift, v_shift;  // [Dp] int8, powers of two of the channels (kInt8Channel)
  // [Dp] f16, the page's first key (kE4M3, kE5M2): a key whose scale is negative is stored as its difference from it.
  int64_t k_reference;
};

// Positions of one part of a softmax. Parts begin at multiples of it and are combined in order, so a row has the same
// bits whether its parts ran one after another or on several threads, and wherever its prompt was cut.
constexpr int64_t kPartKeys = 256;

// A run of rows of one sequence and one kv head, with all query heads of the group.
struct AttentionTask {
  const float* q;        // row r, head h of the group at q + r * q_row_stride + h * D
  int64_t q_row_stride;  // floats between rows of the batch
  float* out;
  int64_t out_row_stride;
  int group;  // query heads of this kv head
  int D;
  float scale;
  int64_t rows;            // at most RowsPerTask(group)
  int64_t first_position;  // of row 0
  int64_t window;
  int64_t part_begin, part_end;
  float* partial;        // when set, the state of each query goes here instead of its result to `out`
  const uint8_t* arena;  // of this kv head
  const int32_t* pages;
  KvOffsets offsets;
  int page_tokens;
  int sink_pages;        // see KvPageIndex
  const uint8_t* sinks;  // of this kv head in sink pages
  float* scratch;        // AttentionScratchFloats(group, D)
};

constexpr int64_t RowsPerTask(int group) { return group >= 32 ? 1 : group <= 2 ? 16 : 32 / group; }
// Floats of a query's state: acc [Dp], then the largest score and the sum of weights. The sum is 0 before the first
// key.
constexpr int64_t AttentionStateFloats(int D) { return (D + 15) / 16 * 16 + 16; }
constexpr int64_t AttentionScratchFloats(int group, int D) {
  const int64_t Dp = (D + 15) / 16 * 16, queries = RowsPerTask(group) * group;
  return queries * (Dp + 2 * AttentionStateFloats(D) + kPartKeys) + 3 * kPartKeys + (64 + 4) * Dp;
}

// What a machine does at most, see probe_impl.h.
enum class Probe { kRead, kF32, kInt16, kInt8 };

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
  void (*quantize_row)(const float* x, int64_t K, int64_t block, const RowCodes& to);
  // The same with 8-bit codes, -128 .. 127: one scale for the row, amax / 127.5, or `static_scale` when it is positive.
  // quantize_row8 writes int8 codes; quantize_row8_wide int16 codes less `zero`.
  void (*quantize_row8)(const float* x, int64_t K, int64_t block, float static_scale, int zero, const RowCodes& to);
  void (*quantize_row8_wide)(const float* x, int64_t K, int64_t block, float static_scale, int zero,
                             const RowCodes& to);
  // Whether `panels` takes kInt8Quads (AVX2 has no exact product of two bytes).
  bool int8_quads;
  // Panels [p_begin, p_end) for all rows; the last panel may be short of N.
  void (*panels)(const QuantizedRows& x, const PanelWeights& w, int64_t p_begin, int64_t p_end, int64_t N,
                 const float* bias, float* out, int64_t out_stride);
  // Panels [p_begin, p_end) of float codes against f32 rows.
  void (*float_panels)(const float* x, int64_t x_stride, int64_t M, const FloatPanels& w, int64_t p_begin,
                       int64_t p_end, int64_t N, const float* bias, float* out, int64_t out_stride);
  void (*attend[kKvFormats])(const AttentionTask& task);
  // Combines the states that tasks of single parts left: query i of part p at partial + (p * queries + i) * state
  // floats. Query i is row i / group, head i % group.
  void (*combine_parts)(const float* partial, int64_t parts, const AttentionTask& task);
  void (*rms_norm_row)(const float* x, const float* weight, float eps, int64_t K, float* y);
  void (*add)(float* x, const float* y, int64_t count);
  void (*silu_mul_row)(const float* gate, const float* up, int64_t F, float* out);
  // Bytes read or operations done by one run of a probe.
  int64_t (*probe)(Probe probe, const uint8_t* data, int64_t bytes, float* sink);
  void (*rope_row)(float* x, int64_t D, const float* cos, const float* sin, bool interleaved);
};

extern const TierFns kGenericTier;
extern const TierFns kAvx2Tier;
extern const TierFns kAvx512Tier;

}  // namespace sage::cpu
