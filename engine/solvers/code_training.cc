// Straight-through rounding with exact gradients of the scales.
#include "engine/solvers/code_training.h"

#include <algorithm>
#include <cmath>

namespace sage {
namespace {

constexpr float kMeanDecay = 0.9f, kSquareDecay = 0.95f, kLeast = 1e-12f;
// A start's code is kept by a latent that lies well inside its rounding interval, so that no first step moves it.
constexpr float kInside = 0.3f;
// How far a scale may go from the start's.
constexpr float kLeastScale = 0.5f, kMostScale = 1.5f;

float CodeOf(float latent, float low, float high) {
  const float inside = !(latent > low) ? low : latent > high ? high : latent;  // low where it is not a number
  return static_cast<float>(RoundHalfEven(inside));
}

}  // namespace

void AdamState::Move(int64_t begin, int64_t count, const AdamStep& step, double rate, float* gradient) {
  const double steps = static_cast<double>(step.step);
  const float by_mean = static_cast<float>(step.rate * rate / (1.0 - std::pow(static_cast<double>(kMeanDecay), steps)));
  const float by_square = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(kSquareDecay), steps)));
  float* mean = mean_.data() + begin;
  float* square = square_.data() + begin;
  for (int64_t i = 0; i < count; ++i) {
    const float g = gradient[i];
    mean[i] = kMeanDecay * mean[i] + (1.0f - kMeanDecay) * g;
    square[i] = kSquareDecay * square[i] + (1.0f - kSquareDecay) * g * g;
    gradient[i] = by_mean * mean[i] / (std::sqrt(by_square * square[i]) + kLeast);
  }
}

CodeTraining::CodeTraining(const GridSpec& grid, int64_t N, int64_t K, const float* weight, const GridWeight& start)
    : grid_(grid),
      N_(N),
      K_(K),
      G_(K / GroupWidth(grid, K)),
      low_(static_cast<float>(MinCode(grid.bits))),
      high_(static_cast<float>(MaxCode(grid.bits))),
      g_idx_(start.g_idx),
      latent_(static_cast<size_t>(N * K)),
      begun_(start.scale),
      scale_(start.scale),
      zero_(start.zero),
      of_codes_(N * K),
      of_scales_(N * G_) {
  const int64_t width = GroupWidth(grid, K);
  for (int64_t k = 0; k < K; ++k) {
    const int64_t group = g_idx_.empty() ? k / width : g_idx_[static_cast<size_t>(k)];
    if (stretches_.empty() || stretches_.back().group != group) stretches_.push_back({k, k, group});
    stretches_.back().end = k + 1;
  }
  for (int64_t n = 0; n < N; ++n) {
    for (const Stretch& stretch : stretches_) {
      const size_t group = static_cast<size_t>(n * G_ + stretch.group);
      for (int64_t i = n * K + stretch.begin; i < n * K + stretch.end; ++i) {
        const size_t at = static_cast<size_t>(i);
        const float code = static_cast<float>(start.codes[at]);
        const float place = weight[at] / scale_[group] + zero_[group];
        latent_[at] = std::clamp(place, code - kInside, code + kInside);
      }
    }
  }
}

void CodeTraining::Values(float* out, ThreadPool& threads) const {
  const float low = low_, high = high_;
  threads.ParallelFor(N_, 8, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      for (const Stretch& stretch : stretches_) {
        const int64_t group = n * G_ + stretch.group;
        const float scale = StoredScale(group), zero = zero_[static_cast<size_t>(group)];
        const float* latent = latent_.data() + n * K_;
        float* to = out + n * K_;
        for (int64_t k = stretch.begin; k < stretch.end; ++k) to[k] = (CodeOf(latent[k], low, high) - zero) * scale;
      }
    }
  });
}

void CodeTraining::Learn(float* gradient, const AdamStep& step, double code_rate, double scale_rate,
                         ThreadPool& threads) {
  threads.ParallelFor(N_, 8, [&](int64_t begin, int64_t end) {
    std::vector<float> slopes(static_cast<size_t>(G_));
    for (int64_t n = begin; n < end; ++n) {
      LearnRow(n, gradient + n * K_, slopes.data());
      of_codes_.Move(n * K_, K_, step, code_rate, gradient + n * K_);
      for (int64_t k = 0; k < K_; ++k) latent_[static_cast<size_t>(n * K_ + k)] -= gradient[n * K_ + k];
      of_scales_.Move(n * G_, G_, step, scale_rate, slopes.data());
      for (int64_t g = 0; g < G_; ++g) {
        const size_t at = static_cast<size_t>(n * G_ + g);
        scale_[at] = std::clamp(scale_[at] - slopes[static_cast<size_t>(g)] * begun_[at], kLeastScale * begun_[at],
                                kMostScale * begun_[at]);
      }
    }
  });
}

// From the gradient of a row's values to those of its latents and of its scales relative to the start's.
void CodeTraining::LearnRow(int64_t n, float* gradient, float* slopes) const {
  std::fill_n(slopes, G_, 0.0f);
  const float* latents = latent_.data() + n * K_;
  const float* scales = scale_.data() + n * G_;
  const float* zeros = zero_.data() + n * G_;
  const float low = low_, high = high_;
  for (const Stretch& stretch : stretches_) {
    const float scale = scales[stretch.group], zero = zeros[stretch.group];
    float slope = 0;
    for (int64_t k = stretch.begin; k < stretch.end; ++k) {
      slope += gradient[k] * (CodeOf(latents[k], low, high) - zero);
    }
    slopes[stretch.group] += slope;
    for (int64_t k = stretch.begin; k < stretch.end; ++k) {
      const float latent = latents[k], value = gradient[k];
      // Outside the range a latent moves only where that brings it back.
      const bool stays = (latent > high && value < 0) | (latent < low && value > 0);
      gradient[k] = stays ? 0.0f : value * scale;
    }
  }
  for (int64_t g = 0; g < G_; ++g) slopes[g] *= begun_[static_cast<size_t>(n * G_ + g)];
}

void CodeTraining::Read(GridWeight* out, ThreadPool& threads) const {
  out->g_idx = g_idx_;
  out->zero = zero_;
  out->scale.resize(scale_.size());
  for (size_t i = 0; i < scale_.size(); ++i) out->scale[i] = StoredScale(static_cast<int64_t>(i));
  out->codes.resize(latent_.size());
  threads.ParallelFor(N_, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * K_; i < end * K_; ++i) {
      const size_t at = static_cast<size_t>(i);
      out->codes[at] = static_cast<int8_t>(CodeOf(latent_[at], low_, high_));
    }
  });
}

}  // namespace sage
