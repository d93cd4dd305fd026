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
  double clip_ratio = 0;            // 0 = off; otherwise the range is cut to (1 - clip_ratio) of the extreme
  DType scale_dtype = DType::kF32;  // stored precision of scales: F32, F16 or BF16
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
};

// ggml blocks, row-major: row n is K/32 blocks (or K/256) one after another, exactly as in the file.
struct BlockWeight {
  std::string type;  // "q4_0", "q4_1", "q8_0"
  const uint8_t* data = nullptr;
  size_t bytes = 0;
};

struct LinearWeight {
  int64_t N = 0;
  int64_t K = 0;
  DenseWeight dense;
  IntegerWeight integer;
  BlockWeight blocks;
  std::vector<float> bias;  // [N] or empty
  // Keeps memory behind `dense` and `blocks` alive as long as the bound layer (a map, or an owned tensor).
  std::shared_ptr<const void> keep_alive;
};

}  // namespace sage
