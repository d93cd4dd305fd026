// Quantizers of the 256-value blocks Q4_K and Q6_K, by the rules of quantization.md 1.8: f32 arithmetic, nearest
// integers half to even, sums in the order of the values.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/quant/ggml_quantize.h"
#include "engine/quant/integer_grid.h"
#include "engine/tensor/float_convert.h"

namespace sage::ggml {
namespace {

constexpr float kNothing = 1e-15f;  // below it a block of Q6_K counts as zero

int Code(float position, int low, int high) {
  if (!(position > static_cast<float>(low))) return low;  // NaN too
  return position >= static_cast<float>(high) ? high : RoundHalfEven(position);
}

// w = scale * code - minimum with codes 0..15, fitted to 32 values.
struct AffineFit {
  float scale = 0, minimum = 0;
  uint8_t codes[32] = {};
};

// One candidate: codes for an inverse scale, then the scale and minimum that fit them best by weighted least squares.
struct AffineTrial {
  float scale = 0, low = 0, error = 0;
  bool solvable = false;
  uint8_t codes[32];

  void Run(const float* x, const float* weight, float inverse, float begin, float sum_w, float sum_x) {
    float sum_l = 0, sum_l2 = 0, sum_xl = 0;
    for (int i = 0; i < 32; ++i) {
      const int l = Code(inverse * (x[i] - begin), 0, 15);
      codes[i] = static_cast<uint8_t>(l);
      const float code = static_cast<float>(l);
      sum_l += weight[i] * code;
      sum_l2 += weight[i] * code * code;
      sum_xl += weight[i] * code * x[i];
    }
    const float determinant = sum_w * sum_l2 - sum_l * sum_l;
    solvable = determinant > 0;
    if (!solvable) return;
    scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
    if (low > 0) {
      low = 0;
      scale = sum_xl / sum_l2;
    }
    error = Error(x, weight, codes, scale, low);
  }

  static float Error(const float* x, const float* weight, const uint8_t* codes, float scale, float low) {
    float sum = 0;
    for (int i = 0; i < 32; ++i) {
      const float difference = scale * static_cast<float>(codes[i]) + low - x[i];
      sum += weight[i] * (difference * difference);
    }
    return sum;
  }
};

AffineFit FitAffine(const float* x) {
  AffineFit fit;
  float squares = 0, weight[32];
  for (int i = 0; i < 32; ++i) squares += x[i] * x[i];
  const float mean = std::sqrt(squares / 32);
  for (int i = 0; i < 32; ++i) weight[i] = mean + std::fabs(x[i]);
  float low = x[0], high = x[0], sum_w = weight[0], sum_x = weight[0] * x[0];
  for (int i = 1; i < 32; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
    sum_w += weight[i];
    sum_x += weight[i] * x[i];
  }
  low = std::min(low, 0.0f);
  fit.minimum = -low;
  if (high == low) return fit;
  const float first = 15 / (high - low);
  float best_low = low;
  fit.scale = 1 / first;
  for (int i = 0; i < 32; ++i) fit.codes[i] = static_cast<uint8_t>(Code(first * (x[i] - low), 0, 15));
  float best = AffineTrial::Error(x, weight, fit.codes, fit.scale, low);
  for (int t = 0; t <= 20; ++t) {
    AffineTrial trial;
    // As the rule is written, codes are counted from the best minimum so far.
    trial.Run(x, weight, (-1.0f + 0.1f * static_cast<float>(t) + 15) / (high - best_low), best_low, sum_w, sum_x);
    if (!trial.solvable || !(trial.error < best)) continue;
    best = trial.error;
    best_low = trial.low;
    fit.scale = trial.scale;
    std::memcpy(fit.codes, trial.codes, sizeof(fit.codes));
  }
  fit.minimum = -best_low;
  return fit;
}

// Eight 6-bit scales and minimums in 12 bytes.
void PackScale(uint8_t* s, int j, int scale, int minimum) {
  if (j < 4) {
    s[j] = static_cast<uint8_t>(scale);
    s[j + 4] = static_cast<uint8_t>(minimum);
    return;
  }
  s[j + 4] = static_cast<uint8_t>((scale & 15) | ((minimum & 15) << 4));
  s[j - 4] = static_cast<uint8_t>(s[j - 4] | ((scale >> 4) << 6));
  s[j] = static_cast<uint8_t>(s[j] | ((minimum >> 4) << 6));
}

// w = scale * code with codes -32..31, fitted to 16 values weighted by their squares.
float FitSymmetric(const float* x, int8_t* codes) {
  float extreme = 0, most = 0;
  for (int i = 0; i < 16; ++i) {
    if (std::fabs(x[i]) > most) {
      most = std::fabs(x[i]);
      extreme = x[i];
    }
  }
  std::memset(codes, 0, 16);
  if (most < kNothing) return 0;
  float scale = 0, best = 0;
  const auto attempt = [&](float inverse, bool first) {
    float sum_xl = 0, sum_l2 = 0;
    int8_t trial[16];
    for (int i = 0; i < 16; ++i) {
      trial[i] = static_cast<int8_t>(Code(inverse * x[i], -32, 31));
      const float code = static_cast<float>(trial[i]), weight = x[i] * x[i];
      sum_xl += weight * x[i] * code;
      sum_l2 += weight * code * code;
    }
    if (!first && !(sum_l2 > 0 && sum_xl * sum_xl > best * sum_l2)) return;
    scale = sum_l2 > 0 ? sum_xl / sum_l2 : 0;
    best = scale * sum_xl;
    std::memcpy(codes, trial, sizeof(trial));
  };
  attempt(-32.0f / extreme, true);
  for (int t = -9; t <= 9; ++t) {
    if (t != 0) attempt(-(32.0f + 0.1f * static_cast<float>(t)) / extreme, false);
  }
  return scale;
}

}  // namespace

bool QuantizeQ4K(const float* x, uint8_t* out) {
  AffineFit fits[8];
  float most_scale = 0, most_minimum = 0;
  for (int j = 0; j < 8; ++j) {
    fits[j] = FitAffine(x + 32 * j);
    most_scale = std::max(most_scale, fits[j].scale);
    most_minimum = std::max(most_minimum, fits[j].minimum);
  }
  const float inverse_scale = most_scale > 0 ? 63 / most_scale : 0;
  const float inverse_minimum = most_minimum > 0 ? 63 / most_minimum : 0;
  std::memset(out, 0, 144);
  const bool fits_half = PutHalf(most_scale / 63, out), minimum_fits = PutHalf(most_minimum / 63, out + 2);
  uint16_t half[2];
  std::memcpy(half, out, sizeof(half));
  uint8_t codes[256];
  for (int j = 0; j < 8; ++j) {
    const int scale = Code(inverse_scale * fits[j].scale, 0, 63);
    const int minimum = Code(inverse_minimum * fits[j].minimum, 0, 63);
    PackScale(out + 4, j, scale, minimum);
    const float d = F16ToFloat(half[0]) * static_cast<float>(scale);
    const float low = F16ToFloat(half[1]) * static_cast<float>(minimum);
    for (int i = 0; i < 32; ++i) {
      codes[32 * j + i] = d == 0 ? fits[j].codes[i] : static_cast<uint8_t>(Code((x[32 * j + i] + low) / d, 0, 15));
    }
  }
  for (int i = 0; i < 256; i += 64) {
    for (int l = 0; l < 32; ++l) {
      out[16 + i / 2 + l] = static_cast<uint8_t>(codes[i + l] | (codes[i + 32 + l] << 4));
    }
  }
  return fits_half && minimum_fits;
}

bool QuantizeQ6K(const float* x, uint8_t* out) {
  int8_t codes[256];
  float scales[16], extreme = 0, most = 0;
  for (int g = 0; g < 16; ++g) {
    scales[g] = FitSymmetric(x + 16 * g, codes + 16 * g);
    if (!std::isfinite(scales[g])) return false;  // squares of values no f16 scale reaches
    if (std::fabs(scales[g]) > most) {
      most = std::fabs(scales[g]);
      extreme = scales[g];
    }
  }
  std::memset(out, 0, 210);
  if (most < kNothing) return true;
  const float inverse = -128.0f / extreme;
  const bool fits_half = PutHalf(1 / inverse, out + 208);
  uint16_t half;
  std::memcpy(&half, out + 208, sizeof(half));
  for (int g = 0; g < 16; ++g) {
    const int scale = Code(inverse * scales[g], -128, 127);
    out[192 + g] = static_cast<uint8_t>(static_cast<int8_t>(scale));
    const float d = F16ToFloat(half) * static_cast<float>(scale);
    for (int i = 16 * g; d != 0 && i < 16 * (g + 1); ++i) codes[i] = static_cast<int8_t>(Code(x[i] / d, -32, 31));
  }
  for (int i = 0; i < 256; ++i) {
    const int at = i / 128, quarter = (i % 128) / 32, l = i % 32, code = codes[i] + 32;
    uint8_t& low = out[at * 64 + (quarter & 1) * 32 + l];
    low = static_cast<uint8_t>(low | ((code & 15) << (quarter < 2 ? 0 : 4)));
    uint8_t& high = out[128 + at * 32 + l];
    high = static_cast<uint8_t>(high | ((code >> 4) << (2 * quarter)));
  }
  return fits_half;
}

}  // namespace sage::ggml
