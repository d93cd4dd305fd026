// How keys and values become bits of a page and what those bits are to a matrix product; the same codes as on the CPU,
// bit for bit.
//
// A product takes 8-bit codes as f16, exactly: an e4m3 code shifted into an f16 is the value times 2^-8 (the factor
// returns with the scale), an e5m2 code is the upper byte of an f16, and an int8 code + 128 glued to the exponent of
// 1024 is 1024 + code + 128, from which 1152 is taken.
#pragma once

#include "engine/backends/cuda/kernels/attention_args.h"
#include "engine/backends/cuda/simt.h"

namespace sage::cuda {

// The four bytes of `codes` as two pairs of f16: bytes 0 and 1, bytes 2 and 3.
template <KvStore kStore>
SAGE_DEVICE void CodesToF16(uint32_t codes, const KvCode& code, uint32_t& low, uint32_t& high) {
  if constexpr (kStore == KvStore::kInt8) {
    const uint32_t biased = codes ^ 0x80808080u;
    low = SubF16(BytePermute(biased, 0x64646464u, 0x4140), 0x64806480u);
    high = SubF16(BytePermute(biased, 0x64646464u, 0x4342), 0x64806480u);
  } else {
    const uint32_t a = BytePermute(codes, 0, 0x1404), b = BytePermute(codes, 0, 0x3424);
    low = (a & code.keep) | ((a >> 1) & code.shifted);
    high = (b & code.keep) | ((b >> 1) & code.shifted);
  }
}

// Half to even, saturating; `value` is not NaN.
SAGE_DEVICE uint8_t EncodeFp8(float value, const KvCode& code) {
  const uint32_t raw = BitsOf(value), size = raw & 0x7fffffffu, sign = raw >> 24 & 0x80u;
  const uint32_t drop = 23 - static_cast<uint32_t>(code.mantissa);
  const uint32_t bias = code.mantissa == 3 ? 7 : 15, most = code.mantissa == 3 ? 0x7eu : 0x7bu;
  if (size < (128 - bias) << 23) {
    // Below the normal codes: multiples of 2^(1 - bias - mantissa), which is the last place of this sum.
    const uint32_t magic = (127 + drop + 1 - bias) << 23;
    return static_cast<uint8_t>(sign | (BitsOf(AddRn(FloatOf(size), FloatOf(magic))) - magic));
  }
  const uint32_t rounded = (size + (1u << (drop - 1)) - 1 + (size >> drop & 1u)) >> drop;
  const uint32_t found = rounded - ((127 - bias) << code.mantissa);
  return static_cast<uint8_t>(sign | (found > most ? most : found));
}
SAGE_DEVICE uint8_t EncodeInt8(float value) {
  return static_cast<uint8_t>(static_cast<int8_t>(fminf(127.0f, fmaxf(-127.0f, rintf(value)))));
}
SAGE_DEVICE float DecodeCode(uint8_t bits, KvStore store, const KvCode& code) {
  if (store == KvStore::kInt8) return static_cast<float>(static_cast<int8_t>(bits));
  const uint32_t a = static_cast<uint32_t>(bits) << 8;
  return F16Value(static_cast<uint16_t>((a & code.keep) | ((a >> 1) & code.shifted))) * code.factor;
}

constexpr uint32_t kLargestFloatBits = 0x7f7fffffu;
SAGE_DEVICE bool IsFinite(float x) { return (BitsOf(x) & 0x7fffffffu) <= kLargestFloatBits; }
// Finite values stay finite.
SAGE_DEVICE uint16_t SaturateBf16(float x) {
  const uint32_t raw = BitsOf(x);
  if ((raw & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(raw >> 16 | 0x40u);
  const uint32_t rounded = (raw + 0x7fffu + (raw >> 16 & 1u)) >> 16;
  return static_cast<uint16_t>((rounded & 0x7fffu) == 0x7f80u && IsFinite(x) ? rounded - 1 : rounded);
}
SAGE_DEVICE uint16_t SaturateF16(float x) {
  const float bounded = IsFinite(x) ? fminf(65504.0f, fmaxf(-65504.0f, x)) : x;
  return static_cast<uint16_t>(PackF16(bounded, 0.0f));
}

// Rounded to `bits` of mantissa, half to even.
SAGE_DEVICE float RoundMantissa(float value, int bits) {
  const uint32_t drop = 23 - static_cast<uint32_t>(bits), raw = BitsOf(value);
  return FloatOf((raw + (1u << (drop - 1)) - 1 + (raw >> drop & 1u)) & ~((1u << drop) - 1));
}

// The scale of a position whose values are all zero.
constexpr float kSmallestKvScale = 0x1p-100f;
SAGE_DEVICE float RangeScale(float most, const KvCode& code) {
  return fmaxf(DivRn(fminf(most, 0.99999f * 3.402823466e38f), code.largest), kSmallestKvScale);
}
// Candidates for the scale of a float format: the range's, and seven up to twice that.
SAGE_DEVICE float CandidateFactor(int candidate) {
  constexpr float kSteps[] = {1.0f, 1.0905077f, 1.1892071f, 1.2968396f, 1.4142135f, 1.5422108f, 1.6817929f, 1.8340081f};
  return kSteps[candidate];
}

}  // namespace sage::cuda
