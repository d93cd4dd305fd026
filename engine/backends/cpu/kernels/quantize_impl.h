// Rows of activations as 16-bit fixed point or 8-bit codes, block by block: what the integer products read.
#pragma once

#include <cstdint>

#include "engine/backends/cpu/kernels/tier.h"

namespace sage::cpu::SAGE_TIER {

// Sixteen values from x, zero past `count`.
inline F LoadSome(const float* x, int64_t count) {
  if (count >= 16) return F::Load(x);
  float values[16] = {};
  for (int64_t i = 0; i < count; ++i) values[i] = x[i];
  return F::Load(values);
}

// The largest magnitude; damage becomes 0, or NaN when a value is not finite (the maximum drops NaN).
inline float LargestOf(const float* x, int64_t count, float* damage) {
  F most = F::Zero(), broken = F::Zero();
  for (int64_t i = 0; i < count; i += 16) {
    const F v = LoadSome(x + i, count - i);
    most = Max(Abs(v), most);
    broken = Fma(v, F::Zero(), broken);
  }
  *damage = Sum(broken);
  return MaxLane(most);
}

// Stores whole codes of sixteen inputs: to[0 .. count) as Code.
template <class Code>
inline void StoreCodes(F codes, int64_t count, Code* to) {
  if (count >= 16) {
    if constexpr (sizeof(Code) == 2) {
      StoreInt16(codes, to);
    } else {
      StoreInt8(codes, to);
    }
    return;
  }
  int16_t some[16];
  StoreInt16(codes, some);
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Code>(some[i]);
}

// `codes`: their sums, whole numbers.
inline void StoreBlock(float scale, F codes, int64_t b, const RowCodes& to) {
  const auto sum = static_cast<int32_t>(Sum(codes));
  to.scale[b * to.rows] = scale;
  to.sum[b * to.rows] = sum;
  to.total[b * to.rows] = scale * static_cast<float>(sum);
}

void QuantizeRow(const float* x, int64_t K, int64_t block, const RowCodes& to) {
  const F limit = F::Set1(32767.0f), floor = F::Set1(-32767.0f);
  for (int64_t b = 0, k = 0; k < K; ++b, k += block) {
    const int64_t size = K - k < block ? K - k : block;
    float damage;
    const float amax = LargestOf(x + k, size, &damage);
    const float scale = amax / 32767.0f + damage;
    const F inverse = F::Set1(amax > 0 ? 32767.0f / amax : 0.0f);
    F total = F::Zero();  // exact: at most 256 codes
    auto* codes = reinterpret_cast<int16_t*>(to.codes + b * to.rows * to.row_bytes);
    for (int64_t i = 0; i < size; i += 16) {
      const F code = Max(Min(Round(Mul(LoadSome(x + k + i, size - i), inverse)), limit), floor);
      total = Add(total, code);
      StoreCodes(code, size - i, codes + i);
    }
    for (int64_t i = size; i < to.row_bytes / 2; ++i) codes[i] = 0;
    StoreBlock(scale, total, b, to);
  }
}

// Code: int8 codes as they are, or int16 codes less `zero`.
template <class Code>
inline void QuantizeRow8(const float* x, int64_t K, int64_t block, float static_scale, int zero, const RowCodes& to) {
  float damage;
  const float amax = LargestOf(x, K, &damage);
  // compressed-tensors' grid: the largest value saturates by half a step.
  const float own = static_scale > 0 ? static_scale : amax / 127.5f;
  // Divided, as the format's other readers do: a product with the inverse would round some codes elsewhere.
  const F divisor = F::Set1(own > 0 ? own : 1.0f), shift = F::Set1(static_cast<float>(zero));
  const F low = F::Set1(-128.0f), high = F::Set1(127.0f);
  for (int64_t b = 0, begin = 0; begin < K; ++b, begin += block) {
    const int64_t size = K - begin < block ? K - begin : block;
    F total = F::Zero();
    auto* codes = reinterpret_cast<Code*>(to.codes + b * to.rows * to.row_bytes);
    for (int64_t i = 0; i < size; i += 16) {
      const F code = Max(Min(Add(Round(Div(LoadSome(x + begin + i, size - i), divisor)), shift), high), low);
      F value = Sub(code, shift);
      if (size - i < 16) {  // places past the end count nothing
        float some[16];
        value.Store(some);
        for (int64_t j = size - i; j < 16; ++j) some[j] = 0.0f;
        value = F::Load(some);
      }
      total = Add(total, value);
      StoreCodes(sizeof(Code) == 2 ? value : code, size - i, codes + i);
    }
    for (int64_t i = size; i < to.row_bytes / static_cast<int64_t>(sizeof(Code)); ++i) codes[i] = 0;
    StoreBlock(own + damage, total, b, to);
  }
}

}  // namespace sage::cpu::SAGE_TIER
