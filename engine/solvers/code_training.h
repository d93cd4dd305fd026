// The learned parameters of one linear layer on the integer grid: latents of its codes, scales of its groups.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/solvers/grid_weight.h"

namespace sage {

// Adam's step for one step of training.
struct AdamStep {
  double rate = 0;  // share of the full rate, 0..1
  int step = 1;     // counts from 1
};

// Adam over a dense array; the step is relative to `rate`.
class AdamState {
 public:
  explicit AdamState(int64_t count = 0) : mean_(count), square_(count) {}
  // How far each of [begin, begin + count) moves, written over its gradient [count].
  void Move(int64_t begin, int64_t count, const AdamStep& step, double rate, float* gradient);

 private:
  std::vector<float> mean_, square_;
};

class CodeTraining {
 public:
  // The start must fit the grid (CheckGridStart).
  CodeTraining(const GridSpec& grid, int64_t N, int64_t K, const float* weight, const GridWeight& start);

  // What the present codes and scales mean: [N, K].
  void Values(float* out, ThreadPool& threads) const;
  // One step against the gradient [N, K] of those values, which is written over.
  void Learn(float* gradient, const AdamStep& step, double code_rate, double scale_rate, ThreadPool& threads);
  // The present codes, scales as stored.
  void Read(GridWeight* out, ThreadPool& threads) const;

 private:
  void LearnRow(int64_t n, float* gradient, float* slopes) const;
  // Inputs side by side that share a group.
  struct Stretch {
    int64_t begin, end, group;
  };
  float StoredScale(int64_t at) const { return RoundToDType(scale_[static_cast<size_t>(at)], grid_.scale_dtype); }

  GridSpec grid_;
  int64_t N_, K_, G_;
  float low_, high_;
  std::vector<int32_t> g_idx_;
  std::vector<Stretch> stretches_;  // cover a row
  std::vector<float> latent_;       // [N, K] in units of codes
  std::vector<float> begun_;        // [N, G] the start's scales
  std::vector<float> scale_;        // [N, G] before they are stored
  std::vector<float> zero_;         // [N, G]
  AdamState of_codes_, of_scales_;
};

}  // namespace sage
