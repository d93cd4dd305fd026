// The integer grid of compressed-tensors: from a range of weights to scale, zero point and codes.
//
// Symmetric: scale = max(|min|, |max|) / ((2^b - 1) / 2), zero 0. Asymmetric: the range is widened to hold 0, scale =
// (max - min) / (2^b - 1), zero = clamp(round(qmin - min / scale)). Codes are signed, -2^(b-1) .. 2^(b-1) - 1. The
// scale is rounded to its stored dtype first; zero and codes use the stored scale. Rounding is half to even everywhere
// and never reads the floating-point environment's mode.
#pragma once

#include <cstdint>

#include "engine/tensor/dtype.h"

namespace sage {

// Nearest integer, ties to even. |value| must be below 2^31 and not NaN.
inline int32_t RoundHalfEven(float value) {
  const int32_t whole = static_cast<int32_t>(value);     // towards zero
  const float rest = value - static_cast<float>(whole);  // exact
  // Without branches: half of them would be mispredicted on weights.
  const int odd = whole & 1;
  const int up = static_cast<int>(rest > 0.5f) | (static_cast<int>(rest == 0.5f) & odd);
  const int down = static_cast<int>(rest < -0.5f) | (static_cast<int>(rest == -0.5f) & odd);
  return whole + up - down;
}

constexpr int32_t MinCode(int bits) { return -(1 << (bits - 1)); }
constexpr int32_t MaxCode(int bits) { return (1 << (bits - 1)) - 1; }

// `value` as an F32, F16 or BF16 element keeps it.
float RoundToDType(float value, DType dtype);
// The distance from 1 to the next number of the dtype: what a zero scale becomes.
float MachineEpsilon(DType dtype);

struct IntegerGrid {
  float scale = 1.0f;  // as stored; infinite when the range does not fit the scale dtype
  int32_t zero = 0;    // signed zero point
};

// `clip` (0 <= clip < 1) cuts both ends of the range to (1 - clip) of their extreme.
IntegerGrid GridFromRange(float min, float max, int bits, bool symmetric, DType scale_dtype, double clip);
// The grid of `count` finite weights.
IntegerGrid GridFromWeights(const float* weights, int64_t count, int bits, bool symmetric, DType scale_dtype,
                            double clip);

// clamp(round(value / scale + zero)).
inline int8_t CodeOf(float value, const IntegerGrid& grid, int bits) {
  const float low = static_cast<float>(MinCode(bits)), high = static_cast<float>(MaxCode(bits));
  float position = value / grid.scale + static_cast<float>(grid.zero);
  position = position < low ? low : position > high ? high : position;
  return static_cast<int8_t>(RoundHalfEven(position));
}
// What a code means: one f32 product.
inline float ValueOf(int32_t code, const IntegerGrid& grid) {
  return static_cast<float>(code - grid.zero) * grid.scale;
}

}  // namespace sage
