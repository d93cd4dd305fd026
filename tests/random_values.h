// Seeded normal values, the weights and activations of tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace sage {

inline std::vector<float> Normal(int64_t count, uint32_t seed, float spread = 1.0f, float mean = 0.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(mean, spread);
  std::vector<float> out(static_cast<size_t>(count));
  for (float& v : out) v = normal(random);
  return out;
}

}  // namespace sage
