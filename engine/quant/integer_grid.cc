// Scales and zero points of the integer grid.
#include "engine/quant/integer_grid.h"

#include <algorithm>
#include <cmath>

#include "engine/tensor/float_convert.h"

namespace sage {

float RoundToDType(float value, DType dtype) {
  if (dtype == DType::kF16) return F16ToFloat(FloatToF16(value));
  if (dtype == DType::kBF16) return BF16ToFloat(FloatToBF16(value));
  return value;
}

float MachineEpsilon(DType dtype) {
  if (dtype == DType::kF16) return 0x1p-10f;
  if (dtype == DType::kBF16) return 0x1p-7f;
  return 0x1p-23f;
}

IntegerGrid GridFromRange(float min, float max, int bits, bool symmetric, DType scale_dtype, double clip) {
  const auto keep = [clip](float v) { return clip == 0 ? v : static_cast<float>(v * (1.0 - clip)); };
  const float low = keep(std::min(min, 0.0f)), high = keep(std::max(max, 0.0f));
  const float steps = static_cast<float>((1 << bits) - 1);
  IntegerGrid grid;
  const float scale = symmetric ? std::max(-low, high) / (steps / 2.0f) : (high - low) / steps;
  grid.scale = RoundToDType(scale, scale_dtype);
  if (grid.scale == 0.0f) grid.scale = MachineEpsilon(scale_dtype);
  if (symmetric || !std::isfinite(grid.scale)) return grid;
  const float bottom = static_cast<float>(MinCode(bits)), top = static_cast<float>(MaxCode(bits));
  grid.zero = RoundHalfEven(std::clamp(bottom - low / grid.scale, bottom, top));
  return grid;
}

IntegerGrid GridFromWeights(const float* weights, int64_t count, int bits, bool symmetric, DType scale_dtype,
                            double clip) {
  float min = 0.0f, max = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    min = std::min(min, weights[i]);
    max = std::max(max, weights[i]);
  }
  return GridFromRange(min, max, bits, symmetric, scale_dtype, clip);
}

}  // namespace sage
