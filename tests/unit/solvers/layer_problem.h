// Random layers with correlated inputs, shared by the solvers' tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "engine/solvers/dense_algebra.h"

namespace sage {

struct LayerProblem {
  int64_t N, K, M;
  std::vector<float> weight;  // [N, K]
  std::vector<float> x;       // [M, K]
  std::vector<float> gram;    // [K, K]
};

// Inputs share K / 4 factors (so they correlate), a few are ten times larger, every third weight group is wider.
inline LayerProblem MakeLayer(int64_t N, int64_t K, int64_t M, uint32_t seed) {
  std::mt19937 generator(seed);
  const auto normal = [&] {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += static_cast<double>(generator()) / 4294967296.0;
    return static_cast<float>(sum);
  };
  LayerProblem out = {N, K, M, {}, {}, {}};
  out.weight.resize(N * K);
  for (int64_t i = 0; i < N * K; ++i) out.weight[i] = normal() * (i / 16 % 3 == 0 ? 0.1f : 0.03f);
  const int64_t F = std::max<int64_t>(1, K / 4);
  std::vector<float> mix(F * K), gain(K), factor(F);
  for (float& v : mix) v = normal() / std::sqrt(static_cast<float>(F));
  for (float& v : gain) v = generator() % 16 == 0 ? 10.0f : 1.0f;
  out.x.resize(M * K);
  for (int64_t m = 0; m < M; ++m) {
    for (float& v : factor) v = normal();
    for (int64_t k = 0; k < K; ++k) {
      float sum = 0.3f * normal();
      for (int64_t f = 0; f < F; ++f) sum += factor[f] * mix[f * K + k];
      out.x[m * K + k] = sum * gain[k];
    }
  }
  ThreadPool threads(1);
  GramSum sum(K);
  sum.Add(out.x.data(), M, threads);
  out.gram = sum.Matrix<float>(threads);
  return out;
}

}  // namespace sage
