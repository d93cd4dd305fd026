// What a quantized linear layer is asked to be, how it is stored, and its canonical in-memory form.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/tensor/tensor.h"

namespace sage {

// Asked of a linear strategy. Fields that a strategy cannot honour are an error of its `check`, never ignored.
struct LinearSpec {
  std::string strategy;  // plug-in name, e.g. "int4_w4a16"
  int group_size = -1;   // inputs that share a scale; -1 = one scale a row (per channel)
  bool symmetric = true;
  bool act_order = false;
  double clip_ratio = 0;             // 0 = off; otherwise the range is cut to (1 - clip_ratio) of the extreme
  DType scale_dtype = DType::kF32;   // stored precision of scales: F32, F16 or BF16
  int block_rows = 1;                // outputs that share a scale; -1 = all of them (one scale a tensor)
  bool double_quant = false;         // the scales are quantized too (nf4, fp4)
  int activation_group_size = -1;    // inputs that share a dynamic activation scale; -1 = one scale a token
  bool static_activations = false;   // 8-bit activations: one stored scale of the layer's input, not one a token
  bool activation_symmetric = true;  // 8-bit integer activations without a zero point
  bool fp8_e5m2 = false;             // codes of fp8 weights are e5m2, not e4m3
  bool solve_in_f64 = false;         // asked of GPTQ's solver; files say nothing of it
};

// A linear layer as a checkpoint stores it: named tensors whose meaning the strategy defines. Views point into a map or
// into `owned`; the checkpoint must outlive it unless everything is owned.
struct StoredLinear {
  LinearSpec spec;
  int64_t N = 0;                               // outputs
  int64_t K = 0;                               // inputs
  std::map<std::string, TensorView> tensors;   // "weight", "weight_packed", "weight_scale", "blocks", ...
  TensorView bias;                             // [N] float, empty when there is none
  std::vector<std::shared_ptr<Tensor>> owned;  // memory behind views that are not in a map

  size_t weight_bytes() const {  // without bias
    size_t total = 0;
    for (const auto& [name, view] : tensors) total += view.bytes;
    return total;
  }
};

// Canonical forms. Exactly one is filled; each strategy's Bind turns its stored tensors into one of them for the
// backend.
struct DenseWeight {
  TensorView values;  // [N, K] f32, f16 or bf16
};

// How a row of activations becomes integers before an integer product.
struct IntegerActivations {
  bool eight_bits = false;  // false: 16-bit fixed point by block of inputs
  float scale = 0;          // eight bits, static: value = scale * (code - zero); 0 = a scale for each token
  int zero = 0;
  bool symmetric = true;  // false: scales for each token come with a zero point for each token
};

// w[n, k] = scale[n, g] * code[n, k] + offset[n, g], g = k / group_size (G groups, the last may be short), or
// g = g_idx[k] when g_idx is given. A zero point z is offset = -scale * z. f32 arithmetic, product rounded, then sum.
struct IntegerWeight {
  int bits = 8;  // 2..8: range of codes; storage below is always one byte a code
  bool codes_signed = true;
  int64_t group_size = 0;      // in inputs, > 0 (K for per channel)
  std::vector<int8_t> codes;   // [N, K]; unsigned codes are stored as their bit pattern
  std::vector<float> scale;    // [N, G]
  std::vector<float> offset;   // [N, G] or empty (symmetric)
  std::vector<int32_t> g_idx;  // [K] or empty
  IntegerActivations activations;
};

// ggml blocks, row-major: row n is K/32 blocks (or K/256) one after another, exactly as in the file.
struct BlockWeight {
  std::string type;  // "q4_0", "q4_1", "q8_0"
  const uint8_t* data = nullptr;
  size_t bytes = 0;
  bool in_map = false;  // `data` lies in a read-only file map: pages that were repacked may be given back
};

// What happens to a row of activations before the product.
struct FloatActivations {
  enum class Kind { kNone, kDynamic, kStatic };
  Kind kind = Kind::kNone;  // kDynamic, kStatic: rounded to e4m3 times a scale
  int64_t group_size = -1;  // dynamic: inputs that share a scale; -1 = the row
  float scale = 0;          // static
};

// w[n, k] = value(code[n, k]) * scale, one f32 product. `codes` may point into a map and is read while binding only.
struct FloatCodeWeight {
  enum class Kind { kE4M3, kE5M2, kTable16 };
  Kind kind = Kind::kE4M3;
  const uint8_t* codes = nullptr;  // row-major [N, K]: a byte a code, or two codes a byte for kTable16
  size_t bytes = 0;
  bool high_nibble_first = false;
  std::vector<float> table;  // [16] for kTable16
  // scale[n / block_rows, k / block_columns] of [ceil(N / block_rows), ceil(K / block_columns)], or, with flat_block,
  // scale[(n K + k) / flat_block]: blocks of the row-major matrix that may cross rows.
  int64_t block_rows = 1, block_columns = 0, flat_block = 0;
  std::vector<float> scale;
  FloatActivations activations;
};

struct LinearWeight {
  int64_t N = 0;
  int64_t K = 0;
  DenseWeight dense;
  IntegerWeight integer;
  BlockWeight blocks;
  FloatCodeWeight floats;
  std::vector<float> bias;  // [N] or empty
  // Keeps memory behind `dense` and `blocks` alive as long as the bound layer (a map, or an owned tensor).
  std::shared_ptr<const void> keep_alive;
};

}  // namespace sage
