// Encoding and decoding of eight-bit floats by bits.
#include "engine/quant/fp8.h"

#include <limits>

namespace sage {
namespace {

// kMantissa stored bits and exponent bias; kLargest is the code of the largest finite magnitude.
template <int kMantissa, int kBias, uint32_t kLargest, uint32_t kNaN>
uint8_t Encode(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 24) & 0x80u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | kNaN);
  constexpr uint32_t kSmallestNormal = static_cast<uint32_t>(127 + 1 - kBias) << 23;
  uint32_t code;
  if (magnitude < kSmallestNormal) {
    // Units of the smallest subnormal; adding 2^23 rounds half to even.
    constexpr float kUnits = static_cast<float>(1 << (kBias - 1 + kMantissa));
    const float rounded = std::bit_cast<float>(magnitude) * kUnits + 8388608.0f;
    code = std::bit_cast<uint32_t>(rounded) & 0xffu;
  } else {
    constexpr int kDrop = 23 - kMantissa;
    const uint32_t rounded = magnitude + ((1u << (kDrop - 1)) - 1u) + ((magnitude >> kDrop) & 1u);
    code = (rounded >> kDrop) - (static_cast<uint32_t>(127 - kBias) << kMantissa);
  }
  return static_cast<uint8_t>(sign | std::min(code, kLargest));
}

template <int kMantissa, int kBias>
float Decode(uint32_t code) {
  const uint32_t sign = (code & 0x80u) << 24, magnitude = code & 0x7fu;
  float value;
  if (magnitude < (1u << kMantissa)) {
    value = static_cast<float>(magnitude) / static_cast<float>(1 << (kBias - 1 + kMantissa));
  } else {
    value = std::bit_cast<float>((magnitude << (23 - kMantissa)) + (static_cast<uint32_t>(127 - kBias) << 23));
  }
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

}  // namespace

uint8_t EncodeE4M3(float value) { return Encode<3, 7, 0x7e, 0x7f>(value); }
uint8_t EncodeE5M2(float value) { return Encode<2, 15, 0x7b, 0x7f>(value); }

float DecodeE4M3(uint8_t code) {
  if (!IsFiniteE4M3(code)) return std::numeric_limits<float>::quiet_NaN();
  return Decode<3, 7>(code);
}

float DecodeE5M2(uint8_t code) {
  if (IsFiniteE5M2(code)) return Decode<2, 15>(code);
  if ((code & 0x7f) > 0x7c) return std::numeric_limits<float>::quiet_NaN();
  return code == 0x7c ? std::numeric_limits<float>::infinity() : -std::numeric_limits<float>::infinity();
}

float DecodeE8M0(uint8_t code) {
  if (code == 255) return std::numeric_limits<float>::quiet_NaN();
  return std::bit_cast<float>(code == 0 ? 0x00400000u : static_cast<uint32_t>(code) << 23);
}

}  // namespace sage
