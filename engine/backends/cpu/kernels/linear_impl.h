// Linear kernels over the sixteen-lane vectors of a tier. Included by tier_<name>.cc with `simd` naming that tier.
//
// Floor at M = 1: the weight bytes over the read bandwidth. Operations for 16 outputs x 4 inputs: int8 two widening
// loads and two dot instructions (AVX2: each twice), nibbles one widening load, a mask, a shift and two dots.
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

void QuantizeRow(const float* x, int64_t K, int64_t block, int64_t padded, int16_t* codes, float* scale, int32_t* sum) {
  for (int64_t b = 0, k = 0; k < K; ++b, k += block) {
    const int64_t size = K - k < block ? K - k : block;
    float values[272] = {};  // block <= 256, padded with zeros to whole vectors
    for (int64_t i = 0; i < size; ++i) values[i] = x[k + i];
    F most = F::Zero(), damage = F::Zero();  // damage: 0, or NaN when a value is not finite (maximum drops NaN)
    for (int64_t i = 0; i < size; i += 16) {
      const F v = F::Load(values + i);
      most = Max(Abs(v), most);
      damage = Fma(v, F::Zero(), damage);
    }
    const float amax = MaxLane(most);
    scale[b] = amax / 32767.0f + Sum(damage);
    const F inverse = F::Set1(amax > 0 ? 32767.0f / amax : 0.0f);
    const F limit = F::Set1(32767.0f), floor = F::Set1(-32767.0f);
    int16_t out[272];
    for (int64_t i = 0; i < size; i += 16) {
      StoreInt16(Max(Min(Round(Mul(F::Load(values + i), inverse)), limit), floor), out + i);
    }
    int32_t total = 0;
    int16_t* to = codes + b * padded;
    for (int64_t i = 0; i < size; ++i) {
      to[i] = out[i];
      total += out[i];
    }
    for (int64_t i = size; i < padded; ++i) to[i] = 0;
    sum[b] = total;
  }
}

void QuantizeRow8(const float* x, int64_t K, int64_t block, int64_t padded, float static_scale, int zero,
                  int16_t* codes, float* scale, int32_t* sum) {
  F most = F::Zero(), damage = F::Zero();  // as in QuantizeRow
  int64_t k = 0;
  for (; k + 16 <= K; k += 16) {
    const F v = F::Load(x + k);
    most = Max(Abs(v), most);
    damage = Fma(v, F::Zero(), damage);
  }
  if (k < K) {
    float tail[16] = {};
    for (int64_t i = k; i < K; ++i) tail[i - k] = x[i];
    most = Max(Abs(F::Load(tail)), most);
    damage = Fma(F::Load(tail), F::Zero(), damage);
  }
  const float own =
      static_scale > 0
          ? static_scale
          : MaxLane(most) / 127.5f;  // compressed-tensors' grid: the largest value saturates by half a step
  // Divided, as the format's other readers do: a product with the inverse would round some codes elsewhere.
  const F divisor = F::Set1(own > 0 ? own : 1.0f), shift = F::Set1(static_cast<float>(zero));
  const F low = F::Set1(-128.0f), high = F::Set1(127.0f);
  for (int64_t b = 0, begin = 0; begin < K; ++b, begin += block) {
    const int64_t size = K - begin < block ? K - begin : block;
    float values[272] = {};
    int16_t out[272];
    for (int64_t i = 0; i < size; ++i) values[i] = x[begin + i];
    for (int64_t i = 0; i < size; i += 16) {
      const F code = Add(Round(Div(F::Load(values + i), divisor)), shift);
      StoreInt16(Sub(Max(Min(code, high), low), shift), out + i);
    }
    int32_t total = 0;
    int16_t* to = codes + b * padded;
    for (int64_t i = 0; i < size; ++i) {
      to[i] = out[i];
      total += out[i];
    }
    for (int64_t i = size; i < padded; ++i) to[i] = 0;
    scale[b] = own + Sum(damage);
    sum[b] = total;
  }
}

// One panel (16 outputs) against MR rows.
template <int MR, bool kNibbles>
inline void PanelTile(const QuantizedRows& x, int64_t m0, const PanelWeights& w, int64_t panel, F* acc) {
  constexpr int64_t kStep = kNibbles ? 32 : 64;  // bytes for 4 inputs
  const int64_t block_bytes = w.padded / 4 * kStep;
  const int64_t groups = (w.blocks + w.blocks_per_group - 1) / w.blocks_per_group;
  const uint8_t* codes = w.codes + panel * w.blocks * block_bytes;
  const int64_t row = x.blocks * x.padded;
  for (int m = 0; m < MR; ++m) acc[m] = F::Zero();
  for (int64_t b = 0; b < w.blocks; ++b) {
    I dots[MR];
    for (int m = 0; m < MR; ++m) dots[m] = I::Set1(-w.bias * x.sum[(m0 + m) * x.blocks + b]);
    for (int64_t k = 0; k < w.padded; k += 4, codes += kStep) {
      W first, second;
      if constexpr (kNibbles) {
        Nibbles32(codes, &first, &second);
        __builtin_prefetch(codes + 2048);
      } else {
        first = W::FromI8(codes);
        second = W::FromI8(codes + 32);
        __builtin_prefetch(codes + 4096);
      }
      for (int m = 0; m < MR; ++m) {
        const int16_t* a = x.codes + (m0 + m) * row + b * x.padded + k;
        dots[m] = Dot(Dot(dots[m], first, W::Pair(a)), second, W::Pair(a + 2));
      }
    }
    const int64_t g = b / w.blocks_per_group;
    const F scale = F::Load(w.scale + (panel * groups + g) * 16);
    for (int m = 0; m < MR; ++m) {
      const float a = x.scale[(m0 + m) * x.blocks + b];
      acc[m] = Fma(ToFloat(dots[m]), Mul(scale, F::Set1(a)), acc[m]);
    }
    if (w.offset != nullptr) {
      const F offset = F::Load(w.offset + (panel * groups + g) * 16);
      for (int m = 0; m < MR; ++m) {
        const int64_t i = (m0 + m) * x.blocks + b;
        acc[m] = Fma(offset, F::Set1(x.scale[i] * static_cast<float>(x.sum[i])), acc[m]);
      }
    }
  }
}

template <int MR, bool kNibbles>
inline void PanelStore(const QuantizedRows& x, int64_t m0, const PanelWeights& w, int64_t panel, int64_t N,
                       const float* bias, float* out, int64_t out_stride) {
  F acc[MR];
  PanelTile<MR, kNibbles>(x, m0, w, panel, acc);
  const int64_t n = panel * 16;
  for (int m = 0; m < MR; ++m) {
    float* row = out + (m0 + m) * out_stride + n;
    if (bias == nullptr && n + 16 <= N) {
      acc[m].Store(row);
      continue;
    }
    float values[16];
    acc[m].Store(values);
    for (int64_t i = 0; i < 16 && n + i < N; ++i) row[i] = values[i] + (bias == nullptr ? 0.0f : bias[n + i]);
  }
}

template <bool kNibbles>
inline void PanelRange(const QuantizedRows& x, int64_t M, const PanelWeights& w, int64_t p_begin, int64_t p_end,
                       int64_t N, const float* bias, float* out, int64_t out_stride) {
  for (int64_t p = p_begin; p < p_end; ++p) {
    int64_t m = 0;
    for (; m + kPanelRows <= M; m += kPanelRows) PanelStore<kPanelRows, kNibbles>(x, m, w, p, N, bias, out, out_stride);
    for (; m + 4 <= M; m += 4) PanelStore<4, kNibbles>(x, m, w, p, N, bias, out, out_stride);
    for (; m + 2 <= M; m += 2) PanelStore<2, kNibbles>(x, m, w, p, N, bias, out, out_stride);
    for (; m < M; ++m) PanelStore<1, kNibbles>(x, m, w, p, N, bias, out, out_stride);
  }
}

void Panels(const QuantizedRows& x, int64_t M, const PanelWeights& w, int64_t p_begin, int64_t p_end, int64_t N,
            const float* bias, float* out, int64_t out_stride) {
  if (w.nibbles) {
    PanelRange<true>(x, M, w, p_begin, p_end, N, bias, out, out_stride);
  } else {
    PanelRange<false>(x, M, w, p_begin, p_end, N, bias, out, out_stride);
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
  const int64_t stride = x.blocks * x.padded;
  for (int64_t b = 0; b < x.blocks; ++b, row += Block::kBytes) {
    const float d = HalfAt(row);
    const W codes = Block::Codes(row);
    __builtin_prefetch(row + 1024);
    for (int m = 0; m < MR; ++m) {
      const int64_t i = (m0 + m) * x.blocks + b;
      const I dots = Dot(I::Zero(), codes, W::Load(x.codes + (m0 + m) * stride + b * x.padded));
      acc[m] = Fma(ToFloat(dots), F::Set1(d * x.scale[i]), acc[m]);
      if constexpr (Block::kHasMin) low[m] += HalfAt(row + 2) * x.scale[i] * static_cast<float>(x.sum[i]);
    }
  }
  for (int m = 0; m < MR; ++m) out[(m0 + m) * out_stride] = Sum(acc[m]) + low[m] + bias;
}

template <class Block>
void Blocks(const QuantizedRows& x, int64_t M, const BlockRows& w, int64_t n_begin, int64_t n_end, const float* bias,
            float* out, int64_t out_stride) {
  for (int64_t n = n_begin; n < n_end; ++n) {
    const uint8_t* row = w.data + n * w.row_bytes;
    const float b = bias == nullptr ? 0.0f : bias[n];
    int64_t m = 0;
    for (; m + 8 <= M; m += 8) BlockTile<Block, 8>(x, m, row, b, out + n, out_stride);
    for (; m + 2 <= M; m += 2) BlockTile<Block, 2>(x, m, row, b, out + n, out_stride);
    for (; m < M; ++m) BlockTile<Block, 1>(x, m, row, b, out + n, out_stride);
  }
}

}  // namespace sage::cpu::SAGE_TIER
