// Four-bit code tables (NF4 and FP4 of bitsandbytes, E2M1 of microscaling blocks) and the double quantization of block
// maxima. Values are the exact f32 entries that the tools write; sources: quantization.md 1.7.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace sage {

// Quantiles of the normal distribution, -1 .. 1.
inline constexpr std::array<float, 16> kNf4Table = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};
// Three-bit floats over 12, bit 3 is the sign; code 8 is plain zero as in the files.
inline constexpr std::array<float, 16> kFp4Table = {
    0.0f,
    0.0052083334885537624f,
    0.6666666865348816f,
    1.0f,
    0.3333333432674408f,
    0.5f,
    0.1666666716337204f,
    0.25f,
    0.0f,
    -0.0052083334885537624f,
    -0.6666666865348816f,
    -1.0f,
    -0.3333333432674408f,
    -0.5f,
    -0.1666666716337204f,
    -0.25f,
};
// Two exponent bits and one mantissa bit, bit 3 is the sign.
inline constexpr std::array<float, 16> kE2m1Table = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                                     -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

// `value` is a weight over its block's maximum, -1 .. 1: the number of midpoints strictly below it.
uint8_t EncodeNf4(float value);
// The nearest magnitude by midpoints (a tie goes to the smaller one), then the sign.
uint8_t EncodeFp4(float value);
// Saturating at 6; ties go to the even code.
uint8_t EncodeE2m1(float value);

// The signed dynamic map of double quantization: 256 ascending values in (-1, 1].
const std::array<float, 256>& DynamicMap();
// Code of the entry nearest to `value`; the lower one on a tie.
uint8_t EncodeDynamic(float value);

struct DoubleQuantized {
  std::vector<uint8_t> codes;        // one a block
  std::vector<float> nested_absmax;  // one for `nested_block` blocks
  float offset = 0;                  // the mean, taken off first
};
DoubleQuantized DoubleQuantize(const std::vector<float>& absmax, int64_t nested_block);
// map[code] * nested + offset: product rounded to f32, then the sum.
inline float DoubleDequantize(float map_value, float nested_absmax, float offset) {
  const float product = map_value * nested_absmax;
  return product + offset;
}

}  // namespace sage
