// Inverse frequencies by scaling kind; everything is computed in f32 where transformers does.
#include "engine/decoder/rope.h"

#include <algorithm>
#include <cmath>

namespace sage {
namespace {

constexpr double kTwoPi = 6.283185307179586476925286766559;

// base^(2i / D) as torch computes it: the exponent is rounded to f32 first, then the power.
float PositionFrequency(double base, int i, int D) {
  const float exponent = static_cast<float>(2 * i) / static_cast<float>(D);
  return static_cast<float>(std::pow(static_cast<double>(static_cast<float>(base)), static_cast<double>(exponent)));
}

void DefaultFrequencies(double base, int D, float* out) {
  for (int i = 0; i < D / 2; ++i) out[i] = 1.0f / PositionFrequency(base, i, D);
}

void Llama3Frequencies(const RopeSpec& spec, int D, float* out) {
  DefaultFrequencies(spec.theta, D, out);
  const double original = static_cast<double>(spec.original_max_position);
  const double low_wavelength = original / spec.low_freq_factor;
  const double high_wavelength = original / spec.high_freq_factor;
  for (int i = 0; i < D / 2; ++i) {
    const float inv = out[i];
    const float wavelength = static_cast<float>(kTwoPi) / inv;
    if (wavelength < high_wavelength) continue;
    if (wavelength > low_wavelength) {
      out[i] = inv / static_cast<float>(spec.factor);
      continue;
    }
    const float smooth = (static_cast<float>(original) / wavelength - static_cast<float>(spec.low_freq_factor)) /
                         static_cast<float>(spec.high_freq_factor - spec.low_freq_factor);
    out[i] = (1.0f - smooth) * inv / static_cast<float>(spec.factor) + smooth * inv;
  }
}

double YarnCorrectionDim(double rotations, int D, double base, double max_position) {
  return D * std::log(max_position / (rotations * kTwoPi)) / (2.0 * std::log(base));
}

void YarnFrequencies(const RopeSpec& spec, int D, float* out) {
  const double original = static_cast<double>(spec.original_max_position);
  double low = YarnCorrectionDim(spec.beta_fast, D, spec.theta, original);
  double high = YarnCorrectionDim(spec.beta_slow, D, spec.theta, original);
  if (spec.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(D - 1));
  if (low == high) high += 0.001;
  for (int i = 0; i < D / 2; ++i) {
    const float frequency = PositionFrequency(spec.theta, i, D);
    const float extrapolation = 1.0f / frequency;
    const float interpolation = 1.0f / (static_cast<float>(spec.factor) * frequency);
    const float ramp = static_cast<float>(std::clamp((i - low) / (high - low), 0.0, 1.0));
    const float keep = 1.0f - ramp;
    out[i] = interpolation * (1.0f - keep) + extrapolation * keep;
  }
}

double YarnMscale(double factor, double mscale) { return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; }

float YarnAttentionScaling(const RopeSpec& spec) {
  if (spec.attention_factor > 0) return static_cast<float>(spec.attention_factor);
  if (spec.mscale != 0 && spec.mscale_all_dim != 0) {
    return static_cast<float>(YarnMscale(spec.factor, spec.mscale) / YarnMscale(spec.factor, spec.mscale_all_dim));
  }
  return static_cast<float>(YarnMscale(spec.factor, 1.0));
}

}  // namespace

Rope::Rope(const RopeSpec& spec, int D, int64_t max_position)
    : spec_(spec), D_(D), max_position_(max_position), inv_freq_(static_cast<size_t>(D / 2)) {
  if (spec_.kind == "llama3") {
    Llama3Frequencies(spec_, D, inv_freq_.data());
  } else if (spec_.kind == "yarn") {
    YarnFrequencies(spec_, D, inv_freq_.data());
    attention_scaling_ = YarnAttentionScaling(spec_);
  } else {
    DefaultFrequencies(spec_.theta, D, inv_freq_.data());
    if (spec_.kind == "linear") {
      for (float& f : inv_freq_) f /= static_cast<float>(spec_.factor);
    }
  }
  for (size_t i = 0; i < spec_.freq_factors.size() && i < inv_freq_.size(); ++i) inv_freq_[i] /= spec_.freq_factors[i];
}

void Rope::InverseFrequencies(int64_t length, float* out) const {
  if (spec_.kind != "dynamic" || length <= max_position_) {
    std::copy(inv_freq_.begin(), inv_freq_.end(), out);
    return;
  }
  const double d = D_;
  const double stretch =
      spec_.factor * static_cast<double>(length) / static_cast<double>(max_position_) - (spec_.factor - 1.0);
  DefaultFrequencies(spec_.theta * std::pow(stretch, d / (d - 2.0)), D_, out);
}

void Rope::FillRow(int64_t position, const float* inv_freq, float* cos, float* sin) const {
  const float p = static_cast<float>(position);
  for (int i = 0; i < D_ / 2; ++i) {
    const float angle = p * inv_freq[i];
    cos[i] = std::cos(angle) * attention_scaling_;
    sin[i] = std::sin(angle) * attention_scaling_;
  }
}

void Rope::FillTables(absl::Span<const SequenceSlice> sequences, float* cos, float* sin) const {
  const int64_t half = D_ / 2;
  std::vector<float> scaled(static_cast<size_t>(half));
  for (const SequenceSlice& slice : sequences) {
    for (int64_t r = 0; r < slice.rows; ++r) {
      const int64_t position = slice.context + r;
      const int64_t length = std::max(slice.prompt_length, position + 1);
      const float* frequencies = inv_freq_.data();
      if (spec_.kind == "dynamic" && length > max_position_) {
        InverseFrequencies(length, scaled.data());
        frequencies = scaled.data();
      }
      const int64_t row = slice.row_begin + r;
      FillRow(position, frequencies, cos + row * half, sin + row * half);
    }
  }
}

}  // namespace sage
