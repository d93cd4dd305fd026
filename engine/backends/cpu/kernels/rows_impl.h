// Norms, activation functions and rotation over the sixteen-lane vectors of a tier.
#pragma once

#include <cmath>
#include <cstdint>

#include "engine/backends/cpu/kernels/tier.h"

namespace sage::cpu::SAGE_TIER {

// e^x by 2^n * e^r, |r| <= ln2 / 2, a polynomial of degree 6: relative error below 2e-7; x is clamped to [-87, 88].
// NaN stays NaN: Max and Min answer their second operand when the two do not compare, so x stands there.
inline F Exp(F x) {
  const F clamped = Min(F::Set1(88.0f), Max(F::Set1(-87.0f), x));
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

}  // namespace sage::cpu::SAGE_TIER
