// The grid's inner loops: every tier has the bits of the plain one, the error is that of the codes, and the next move
// is the one that a code-by-code walk finds.
#include "engine/solvers/grid_kernels.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace sage::grid_kernels_test {
namespace {

constexpr double kNoBound = std::numeric_limits<double>::infinity();

std::vector<float> Normals(int64_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(count));
  for (float& value : out) value = normal(random);
  return out;
}

TEST(GridKernels, SquaredErrorsOfEveryTierAndLength) {
  std::mt19937 random(3);
  for (const int64_t count : {1, 7, 15, 16, 17, 63, 64, 65, 100, 576}) {
    for (const int bits : {2, 3, 4, 8}) {
      const std::vector<float> weights = Normals(count, random);
      std::vector<float> importance = Normals(count, random);
      for (float& value : importance) value *= value;
      for (const bool symmetric : {true, false}) {
        const IntegerGrid grid = GridFromWeights(weights.data(), count, bits, symmetric, DType::kBF16, 0.1);
        double want = 0;
        for (int64_t i = 0; i < count; ++i) {
          const double off = weights[i] - ValueOf(CodeOf(weights[i], grid, bits), grid);
          want += off * off * static_cast<double>(importance[i]);
        }
        const double plain =
            RunnableGridKernels()[0]->squared_error(weights.data(), importance.data(), count, grid, bits, kNoBound);
        EXPECT_NEAR(plain, want, 1e-5 * want + 1e-12);
        for (const GridKernels* tier : RunnableGridKernels()) {
          EXPECT_EQ(tier->squared_error(weights.data(), importance.data(), count, grid, bits, kNoBound), plain)
              << tier->name << " " << count;
          const double ones = tier->squared_error(weights.data(), nullptr, count, grid, bits, kNoBound);
          EXPECT_EQ(ones,
                    RunnableGridKernels()[0]->squared_error(weights.data(), nullptr, count, grid, bits, kNoBound));
          EXPECT_GT(tier->squared_error(weights.data(), importance.data(), count, grid, bits, want / 1e6), want / 1e6);
        }
      }
    }
  }
}

struct Row {
  std::vector<float> value, scale, zero, energy, gradient;
  CodeRow view() const { return {value.data(), scale.data(), zero.data(), energy.data(), gradient.data()}; }
};

// Some codes have no energy, some gradients are not finite or would move a code off the grid.
Row RandomRow(int64_t count, int bits, std::mt19937& random) {
  const int64_t padded = (count + kGridLanes - 1) / kGridLanes * kGridLanes;
  Row row;
  row.gradient = Normals(padded, random);
  row.scale = Normals(padded, random);
  for (int64_t i = 0; i < padded; ++i) {
    const int32_t codes = 1 << bits;
    row.scale[i] = std::fabs(row.scale[i]) + 0.01f;
    row.zero.push_back(static_cast<float>(static_cast<int32_t>(random() % codes) - codes / 2));
    const int32_t code = static_cast<int32_t>(random() % codes) - codes / 2;
    row.value.push_back((static_cast<float>(code) - row.zero[i]) * row.scale[i]);
    row.energy.push_back(i >= count || random() % 9 == 0 ? 0.0f : 0.1f + static_cast<float>(random() % 100));
    row.gradient[i] *= random() % 4 == 0 ? 10.0f : 0.01f;
    if (random() % 50 == 0) row.gradient[i] = std::nanf("");
    if (random() % 50 == 0) row.gradient[i] = std::numeric_limits<float>::infinity();
    if (random() % 50 == 0) row.gradient[i] = 1e30f;
  }
  return row;
}

TEST(GridKernels, NextMovesAreThoseOfACodeByCodeWalk) {
  std::mt19937 random(5);
  for (const int64_t count : {1, 5, 16, 17, 40, 576, 1000}) {
    for (const int bits : {2, 4, 8}) {
      const Row row = RandomRow(count, bits, random);
      std::vector<std::pair<int64_t, int>> want;
      for (int64_t i = 0; i < count; ++i) {
        const float wanted = row.value[i] - row.gradient[i] / row.energy[i];
        if (!(row.energy[i] > 0) || !std::isfinite(wanted)) continue;
        const IntegerGrid grid = {row.scale[i], static_cast<int32_t>(row.zero[i])};
        const int8_t code = CodeOf(wanted, grid, bits);
        const float step = ValueOf(code, grid) - row.value[i];
        if (step * (2.0f * row.gradient[i] + step * row.energy[i]) < 0) want.emplace_back(i, code);
      }
      for (const GridKernels* tier : RunnableGridKernels()) {
        std::vector<std::pair<int64_t, int>> got;
        int8_t code = 0;
        for (int64_t i = tier->next_move(row.view(), 0, count, bits, &code); i < count;
             i = tier->next_move(row.view(), i + 1, count, bits, &code)) {
          got.emplace_back(i, code);
        }
        EXPECT_EQ(got, want) << tier->name << " " << count << " " << bits;
      }
    }
  }
}

}  // namespace
}  // namespace sage::grid_kernels_test
