// Four-bit encoding by midpoints, and the dynamic map made as bitsandbytes makes it.
#include "engine/quant/nf4.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace sage {
namespace {

// Codes of kFp4Table in ascending magnitude.
constexpr uint8_t kFp4Order[8] = {0, 1, 6, 7, 4, 5, 2, 3};

std::array<float, 256> MakeDynamicMap() {
  std::array<float, 256> map{};
  size_t count = 0;
  for (int i = 0; i < 7; ++i) {
    const int cells = 1 << i;
    const float step = (1.0f - 0.1f) / static_cast<float>(cells);
    // Boundaries run from both ends towards the middle, each one fused multiply-add.
    const auto boundary = [&](int j) {
      return j < (cells + 1) / 2 ? std::fma(step, static_cast<float>(j), 0.1f)
                                 : std::fma(-step, static_cast<float>(cells - j), 1.0f);
    };
    const float power = static_cast<float>(std::pow(10.0, i - 6));
    for (int j = 0; j < cells; ++j) {
      const float mean = (boundary(j) + boundary(j + 1)) / 2.0f;
      map[count++] = power * mean;
      map[count++] = -(power * mean);
    }
  }
  map[count++] = 0.0f;
  map[count++] = 1.0f;
  std::sort(map.begin(), map.end());
  return map;
}

}  // namespace

uint8_t EncodeNf4(float value) {
  int code = 0;
  for (size_t i = 0; i < 15; ++i) code += (kNf4Table[i] + kNf4Table[i + 1]) / 2.0f < value ? 1 : 0;
  return static_cast<uint8_t>(code);
}

uint8_t EncodeFp4(float value) {
  const float magnitude = std::fabs(value);
  int at = 0;
  for (int i = 0; i < 7; ++i) at += (kFp4Table[kFp4Order[i]] + kFp4Table[kFp4Order[i + 1]]) / 2.0f < magnitude ? 1 : 0;
  return static_cast<uint8_t>(kFp4Order[at] | (value < 0 ? 8 : 0));
}

uint8_t EncodeE2m1(float value) {
  const float magnitude = std::fabs(value);
  int code = 0;
  for (size_t i = 0; i < 7; ++i) {
    const float middle = (kE2m1Table[i] + kE2m1Table[i + 1]) / 2.0f;
    code += middle < magnitude || (middle == magnitude && i % 2 == 1) ? 1 : 0;
  }
  return static_cast<uint8_t>(code | (value < 0 ? 8 : 0));
}

const std::array<float, 256>& DynamicMap() {
  static const std::array<float, 256> map = MakeDynamicMap();
  return map;
}

uint8_t EncodeDynamic(float value) {
  const std::array<float, 256>& map = DynamicMap();
  const size_t above = static_cast<size_t>(std::lower_bound(map.begin(), map.end(), value) - map.begin());
  if (above == 0) return 0;
  if (above == map.size()) return 255;
  return static_cast<uint8_t>(map[above] - value < value - map[above - 1] ? above : above - 1);
}

DoubleQuantized DoubleQuantize(const std::vector<float>& absmax, int64_t nested_block) {
  DoubleQuantized out;
  double sum = 0;
  for (const float v : absmax) sum += v;
  out.offset = absmax.empty() ? 0.0f : static_cast<float>(sum / static_cast<double>(absmax.size()));
  const size_t block = static_cast<size_t>(nested_block);
  for (size_t begin = 0; begin < absmax.size(); begin += block) {
    const size_t end = std::min(begin + block, absmax.size());
    float most = 0;
    for (size_t i = begin; i < end; ++i) most = std::max(most, std::fabs(absmax[i] - out.offset));
    out.nested_absmax.push_back(most);
    for (size_t i = begin; i < end; ++i) {
      out.codes.push_back(EncodeDynamic(most > 0 ? (absmax[i] - out.offset) / most : 0.0f));
    }
  }
  return out;
}

}  // namespace sage
