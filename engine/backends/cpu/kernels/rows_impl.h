// Norms, activation functions, rotation and attention over the sixteen-lane vectors of a tier.
#pragma once

#include <cmath>
#include <cstdint>

#include "engine/backends/cpu/kernels/tier.h"

namespace sage::cpu::SAGE_TIER {

// e^x by 2^n * e^r, |r| <= ln2 / 2, a polynomial of degree 6: relative error below 2e-7; 0 below -87.
inline F Exp(F x) {
  const F floor = F::Set1(-87.0f);
  const F clamped = Min(Max(x, floor), F::Set1(88.0f));
  const F n = Round(Mul(clamped, F::Set1(1.44269504088896341f)));
  F r = Fma(n, F::Set1(-0.693145751953125f), clamped);
  r = Fma(n, F::Set1(-1.42860682030941723e-6f), r);
  F p = F::Set1(1.3981999507e-3f);
  p = Fma(p, r, F::Set1(8.3334519073e-3f));
  p = Fma(p, r, F::Set1(4.1665795894e-2f));
  p = Fma(p, r, F::Set1(1.6666665459e-1f));
  p = Fma(p, r, F::Set1(5.0000001201e-1f));
  p = Fma(Mul(p, r), r, Add(r, F::Set1(1.0f)));
  return Mul(p, PowerOfTwo(n));
}

void RmsNormRow(const float* x, const float* weight, float eps, int64_t K, float* y) {
  F squares = F::Zero();
  const int64_t whole = K / 16 * 16;
  for (int64_t k = 0; k < whole; k += 16) {
    const F v = F::Load(x + k);
    squares = Fma(v, v, squares);
  }
  float total = Sum(squares);
  for (int64_t k = whole; k < K; ++k) total += x[k] * x[k];
  const float inverse = 1.0f / std::sqrt(total / static_cast<float>(K) + eps);
  const F scale = F::Set1(inverse);
  for (int64_t k = 0; k < whole; k += 16) Mul(Mul(F::Load(x + k), scale), F::Load(weight + k)).Store(y + k);
  for (int64_t k = whole; k < K; ++k) y[k] = x[k] * inverse * weight[k];
}

void AddRow(float* x, const float* y, int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) Add(F::Load(x + i), F::Load(y + i)).Store(x + i);
  for (; i < count; ++i) x[i] += y[i];
}

inline F SiluMul(F gate, F up) {
  const F one = F::Set1(1.0f);
  return Mul(Div(gate, Add(one, Exp(Sub(F::Zero(), gate)))), up);
}

void SiluMulRow(const float* gate, const float* up, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) SiluMul(F::Load(gate + i), F::Load(up + i)).Store(out + i);
  if (i < count) {
    float g[16] = {}, u[16] = {}, o[16];
    for (int64_t j = i; j < count; ++j) {
      g[j - i] = gate[j];
      u[j - i] = up[j];
    }
    SiluMul(F::Load(g), F::Load(u)).Store(o);
    for (int64_t j = i; j < count; ++j) out[j] = o[j - i];
  }
}

void RopeRow(float* x, int64_t D, const float* cos, const float* sin, bool interleaved) {
  const int64_t half = D / 2;
  if (interleaved) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cos[i] - b * sin[i];
      x[2 * i + 1] = b * cos[i] + a * sin[i];
    }
    return;
  }
  int64_t i = 0;
  for (; i + 16 <= half; i += 16) {
    const F a = F::Load(x + i), b = F::Load(x + i + half), c = F::Load(cos + i), s = F::Load(sin + i);
    Sub(Mul(a, c), Mul(b, s)).Store(x + i);
    Add(Mul(b, c), Mul(a, s)).Store(x + i + half);
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = b * cos[i] + a * sin[i];
  }
}

struct KvF32 {
  using Type = float;
  static F At(const float* p) { return F::Load(p); }
};
struct KvBF16 {
  using Type = uint16_t;
  static F At(const uint16_t* p) { return F::Load(p, false); }
};

// Keys a block of the online softmax; blocks begin at multiples of it from position 0, so a row's result does not
// depend on where its prompt was cut.
constexpr int kKeyBlock = 32;

// One kv head of one sequence: for each row, all query heads of the group together. Rows of K and V are padded to whole
// vectors in memory. Scratch: q and acc [group][Dp], scores [group][kKeyBlock], max, sum and factor [group].
template <class Kv>
void Attend(const AttentionTask& t) {
  const int64_t Dp = (t.D + 15) / 16 * 16;
  float* const q = t.scratch;
  float* const acc = q + t.group * Dp;
  float* const scores = acc + t.group * Dp;
  float* const most = scores + t.group * kKeyBlock;
  float* const total = most + t.group;
  for (int64_t row = 0; row < t.rows; ++row) {
    const int64_t position = t.first_position + row;
    const int64_t first = t.window > 0 && position + 1 > t.window ? position + 1 - t.window : 0;
    for (int h = 0; h < t.group; ++h) {
      const float* from = t.q + row * t.q_row_stride + h * t.D;
      for (int64_t d = 0; d < Dp; ++d) {
        q[h * Dp + d] = d < t.D ? from[d] * t.scale : 0.0f;
        acc[h * Dp + d] = 0.0f;
      }
      most[h] = -3.0e38f;
      total[h] = 0.0f;
    }
    for (int64_t begin = first / kKeyBlock * kKeyBlock; begin <= position; begin += kKeyBlock) {
      const int64_t end = begin + kKeyBlock < position + 1 ? begin + kKeyBlock : position + 1;
      const int64_t start = begin > first ? begin : first;
      for (int64_t p = start; p < end; ++p) {
        const uint8_t* page = t.arena + static_cast<int64_t>(t.pages[p / t.page_tokens]) * t.page_bytes + t.head_offset;
        const auto* k = reinterpret_cast<const typename Kv::Type*>(page) + p % t.page_tokens * Dp;
        for (int h = 0; h < t.group; ++h) {
          F dot = F::Zero();
          for (int64_t d = 0; d < Dp; d += 16) dot = Fma(F::Load(q + h * Dp + d), Kv::At(k + d), dot);
          scores[h * kKeyBlock + (p - begin)] = Sum(dot);
        }
      }
      for (int h = 0; h < t.group; ++h) {
        float* const s = scores + h * kKeyBlock;
        for (int64_t i = 0; i < kKeyBlock; ++i) {
          if (begin + i < start || begin + i >= end) s[i] = -3.0e38f;
        }
        const float high = MaxLane(Max(F::Load(s), F::Load(s + 16)));
        const float now = high > most[h] ? high : most[h];
        float change[16];
        Exp(F::Set1(most[h] - now)).Store(change);
        F sums = F::Zero();
        for (int64_t i = 0; i < kKeyBlock; i += 16) {
          const F e = Exp(Sub(F::Load(s + i), F::Set1(now)));
          e.Store(s + i);
          for (int64_t j = i; j < i + 16; ++j) {
            if (begin + j < start || begin + j >= end) s[j] = 0.0f;
          }
          sums = Add(sums, F::Load(s + i));
        }
        total[h] = total[h] * change[0] + Sum(sums);
        most[h] = now;
        const F factor = F::Set1(change[0]);
        for (int64_t d = 0; d < Dp; d += 16) Mul(F::Load(acc + h * Dp + d), factor).Store(acc + h * Dp + d);
      }
      for (int64_t p = start; p < end; ++p) {
        const uint8_t* page = t.arena + static_cast<int64_t>(t.pages[p / t.page_tokens]) * t.page_bytes + t.head_offset;
        const auto* v = reinterpret_cast<const typename Kv::Type*>(page + t.value_offset) + p % t.page_tokens * Dp;
        for (int64_t d = 0; d < Dp; d += 16) {
          const F value = Kv::At(v + d);
          for (int h = 0; h < t.group; ++h) {
            Fma(F::Set1(scores[h * kKeyBlock + (p - begin)]), value, F::Load(acc + h * Dp + d)).Store(acc + h * Dp + d);
          }
        }
      }
    }
    for (int h = 0; h < t.group; ++h) {
      float* to = t.out + row * t.out_row_stride + h * t.D;
      for (int64_t d = 0; d < t.D; ++d) to[d] = acc[h * Dp + d] / total[h];
    }
  }
}

}  // namespace sage::cpu::SAGE_TIER
