// Products with weights that are read in place: floats row by row, and ggml blocks.
//
// Floor at M = 1: the weight bytes over the read bandwidth.
#pragma once

#include <cstdint>

#include "engine/backends/cpu/kernels/tier.h"

namespace sage::cpu::SAGE_TIER {

struct LoadF32 {
  using Type = float;
  static F At(const float* p) { return F::Load(p); }
};
struct LoadF16 {
  using Type = uint16_t;
  static F At(const uint16_t* p) { return F::Load(p, true); }
};
struct LoadBF16 {
  using Type = uint16_t;
  static F At(const uint16_t* p) { return F::Load(p, false); }
};

// MR rows of x against NR rows of weights; each product owns one 16-lane accumulator, so its bits depend on K alone.
template <class Loader, int MR, int NR>
inline void DenseTile(const float* x, int64_t x_stride, int64_t K, const typename Loader::Type* w, const float* bias,
                      int64_t n, float* out, int64_t out_stride) {
  F acc[MR][NR];
  for (int m = 0; m < MR; ++m) {
    for (int j = 0; j < NR; ++j) acc[m][j] = F::Zero();
  }
  const int64_t whole = K / 16 * 16;
  for (int64_t k = 0; k < whole; k += 16) {
    F weight[NR];
    for (int j = 0; j < NR; ++j) weight[j] = Loader::At(w + j * K + k);
    for (int m = 0; m < MR; ++m) {
      const F value = F::Load(x + m * x_stride + k);
      for (int j = 0; j < NR; ++j) acc[m][j] = Fma(value, weight[j], acc[m][j]);
    }
  }
  if (whole < K) {
    const int64_t rest = K - whole;
    for (int j = 0; j < NR; ++j) {
      typename Loader::Type w_tail[16] = {};
      for (int64_t i = 0; i < rest; ++i) w_tail[i] = w[j * K + whole + i];
      const F weight = Loader::At(w_tail);
      for (int m = 0; m < MR; ++m) {
        float x_tail[16] = {};
        for (int64_t i = 0; i < rest; ++i) x_tail[i] = x[m * x_stride + whole + i];
        acc[m][j] = Fma(F::Load(x_tail), weight, acc[m][j]);
      }
    }
  }
  for (int m = 0; m < MR; ++m) {
    for (int j = 0; j < NR; ++j) {
      out[m * out_stride + n + j] = Sum(acc[m][j]) + (bias == nullptr ? 0.0f : bias[n + j]);
    }
  }
}

template <class Loader, int MR>
inline void DenseRows(const float* x, int64_t x_stride, int64_t K, const typename Loader::Type* w, int64_t n_begin,
                      int64_t n_end, const float* bias, float* out, int64_t out_stride) {
  constexpr int NR = MR == 1 ? 8 : 4;
  int64_t n = n_begin;
  for (; n + NR <= n_end; n += NR) DenseTile<Loader, MR, NR>(x, x_stride, K, w + n * K, bias, n, out, out_stride);
  for (; n < n_end; ++n) DenseTile<Loader, MR, 1>(x, x_stride, K, w + n * K, bias, n, out, out_stride);
}

template <class Loader>
void Dense(const float* x, int64_t x_stride, int64_t M, int64_t K, const void* weights, int64_t n_begin, int64_t n_end,
           const float* bias, float* out, int64_t out_stride) {
  const auto* w = static_cast<const typename Loader::Type*>(weights);
  // Rows of weights stay in the first cache level while all of x passes by.
  constexpr int64_t kStripe = 16;
  for (int64_t n = n_begin; n < n_end; n += M == 1 ? n_end - n_begin : kStripe) {
    const int64_t stop = M == 1 || n + kStripe > n_end ? n_end : n + kStripe;
    int64_t m = 0;
    for (; m + 4 <= M; m += 4) {
      DenseRows<Loader, 4>(x + m * x_stride, x_stride, K, w, n, stop, bias, out + m * out_stride, out_stride);
    }
    for (; m < M; ++m)
      DenseRows<Loader, 1>(x + m * x_stride, x_stride, K, w, n, stop, bias, out + m * out_stride, out_stride);
  }
}

// ggml blocks of 32 (quantization.md 1.8): f16 d, (f16 m,) then the codes.
inline float HalfAt(const uint8_t* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, 2);
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 31u, mantissa = bits & 0x3ffu;
  float value;
  uint32_t raw;
  if (exponent == 0) {
    value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    __builtin_memcpy(&raw, &value, 4);
    raw |= sign;
  } else {
    raw = exponent == 31 ? sign | 0x7f800000u | (mantissa << 13) : sign | ((exponent + 112u) << 23) | (mantissa << 13);
  }
  __builtin_memcpy(&value, &raw, 4);
  return value;
}

struct Q4_0 {
  static constexpr int kBytes = 18;
  static constexpr bool kHasMin = false;
  static W Codes(const uint8_t* p) { return Nibbles16(p + 2, 8); }
};
struct Q4_1 {
  static constexpr int kBytes = 20;
  static constexpr bool kHasMin = true;
  static W Codes(const uint8_t* p) { return Nibbles16(p + 4, 0); }
};
struct Q8_0 {
  static constexpr int kBytes = 34;
  static constexpr bool kHasMin = false;
  static W Codes(const uint8_t* p) { return W::FromI8(p + 2); }
};

template <class Block, int MR>
inline void BlockTile(const QuantizedRows& x, int64_t m0, const uint8_t* row, float bias, float* out,
                      int64_t out_stride) {
  F acc[MR];
  float low[MR] = {};
  for (int m = 0; m < MR; ++m) acc[m] = F::Zero();
  for (int64_t b = 0; b < x.blocks; ++b, row += Block::kBytes) {
    const float d = HalfAt(row);
    const W codes = Block::Codes(row);
    __builtin_prefetch(row + 1024);
    for (int m = 0; m < MR; ++m) {
      const int64_t i = b * x.M + m0 + m;
      const I dots = Dot(I::Zero(), codes, W::Load(x.codes + i * x.row_bytes));
      acc[m] = Fma(ToFloat(dots), F::Set1(d * x.scale[i]), acc[m]);
      if constexpr (Block::kHasMin) low[m] += HalfAt(row + 2) * x.scale[i] * static_cast<float>(x.sum[i]);
    }
  }
  for (int m = 0; m < MR; ++m) out[(m0 + m) * out_stride] = Sum(acc[m]) + low[m] + bias;
}

template <class Block>
void Blocks(const QuantizedRows& x, const BlockRows& w, int64_t n_begin, int64_t n_end, const float* bias, float* out,
            int64_t out_stride) {
  for (int64_t n = n_begin; n < n_end; ++n) {
    const uint8_t* row = w.data + n * w.row_bytes;
    const float b = bias == nullptr ? 0.0f : bias[n];
    int64_t m = 0;
    for (; m + 8 <= x.M; m += 8) BlockTile<Block, 8>(x, m, row, b, out + n, out_stride);
    for (; m + 2 <= x.M; m += 2) BlockTile<Block, 2>(x, m, row, b, out + n, out_stride);
    for (; m < x.M; ++m) BlockTile<Block, 1>(x, m, row, b, out + n, out_stride);
  }
}

}  // namespace sage::cpu::SAGE_TIER
