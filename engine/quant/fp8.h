// Eight-bit floats of checkpoints: e4m3 (the "fn" form: no infinity, NaN is 0x7F and 0xFF), e5m2 (IEEE-like) and the
// e8m0 exponents of microscaling blocks. Encoding rounds half to even and saturates: nothing but NaN becomes NaN.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace sage {

constexpr float kMaxE4M3 = 448.0f;
constexpr float kMaxE5M2 = 57344.0f;

uint8_t EncodeE4M3(float value);
uint8_t EncodeE5M2(float value);
float DecodeE4M3(uint8_t code);
float DecodeE5M2(uint8_t code);
// 2^(code - 127); 255 is NaN.
float DecodeE8M0(uint8_t code);

constexpr bool IsFiniteE4M3(uint8_t code) { return (code & 0x7f) != 0x7f; }
constexpr bool IsFiniteE5M2(uint8_t code) { return (code & 0x7f) < 0x7c; }

// DecodeE4M3(EncodeE4M3(value)) without branches, for rows of activations; NaN stays NaN.
inline float RoundToE4M3(float value) {
  const float clamped = value < -kMaxE4M3 ? -kMaxE4M3 : value > kMaxE4M3 ? kMaxE4M3 : value;
  const uint32_t bits = std::bit_cast<uint32_t>(clamped), sign = bits & 0x80000000u;
  const uint32_t exponent = std::max((bits >> 23) & 255u, 127u - 6u);
  // A number whose last bit is worth an eighth of 2^exponent: adding it rounds there, taking it away is exact.
  const float magic = std::bit_cast<float>((exponent + 20u) << 23);
  const float magnitude = std::bit_cast<float>(bits ^ sign);
  return std::bit_cast<float>(std::bit_cast<uint32_t>((magnitude + magic) - magic) | sign);
}

// Scales of dynamically quantized activations: amax / 448, kept away from zero as inference servers do.
constexpr float kMinTokenScale = 1.0f / (kMaxE4M3 * 512.0f);
constexpr float kMinGroupAmax = 1e-10f;
inline float TokenScaleE4M3(float amax) { return std::max(amax / kMaxE4M3, kMinTokenScale); }
inline float GroupScaleE4M3(float amax) { return std::max(amax, kMinGroupAmax) / kMaxE4M3; }

}  // namespace sage
