// Scales, zero points and rounding of the integer grid, and the error metrics.
#include "engine/quant/integer_grid.h"

#include <cmath>
#include <limits>
#include <vector>

#include "engine/quant/error_metrics.h"
#include "gtest/gtest.h"

namespace sage {
namespace {

constexpr float kWorked[8] = {-0.3f, 0.1f, 0.7f, -1.1f, 0.4f, 0.0f, 0.9f, -0.6f};

TEST(RoundHalfEven, TiesGoToEven) {
  const float in[] = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 0.49999997f, -0.50000006f, 7.0f, 126.5f, 127.5f};
  const int32_t out[] = {0, 2, 2, 0, -2, -2, 0, -1, 7, 126, 128};
  for (size_t i = 0; i < std::size(in); ++i) EXPECT_EQ(RoundHalfEven(in[i]), out[i]) << in[i];
  for (int i = -4000; i <= 4000; ++i) {
    const float value = static_cast<float>(i) / 16.0f;
    EXPECT_EQ(RoundHalfEven(value), static_cast<int32_t>(std::nearbyint(value))) << value;
  }
}

TEST(IntegerGrid, WorkedVectorSymmetric) {
  const IntegerGrid grid = GridFromWeights(kWorked, 8, 4, true, DType::kF16, 0);
  EXPECT_FLOAT_EQ(grid.scale, 0.14660645f);  // 1.1 / 7.5 as f16
  EXPECT_EQ(grid.zero, 0);
  const int expected[8] = {-2, 1, 5, -8, 3, 0, 6, -4};
  for (int i = 0; i < 8; ++i) EXPECT_EQ(CodeOf(kWorked[i], grid, 4), expected[i]) << i;
}

TEST(IntegerGrid, WorkedVectorAsymmetric) {
  const IntegerGrid grid = GridFromWeights(kWorked, 8, 4, false, DType::kF32, 0);
  EXPECT_FLOAT_EQ(grid.scale, 2.0f / 15.0f);
  EXPECT_EQ(grid.zero, 0);  // unsigned 8
  const int unsigned_codes[8] = {6, 9, 13, 0, 11, 8, 15, 4};
  for (int i = 0; i < 8; ++i) EXPECT_EQ(CodeOf(kWorked[i], grid, 4) + 8, unsigned_codes[i]) << i;
}

TEST(IntegerGrid, ZeroScaleBecomesMachineEpsilon) {
  const float zeros[4] = {};
  EXPECT_EQ(GridFromWeights(zeros, 4, 8, true, DType::kF32, 0).scale, std::numeric_limits<float>::epsilon());
  EXPECT_EQ(GridFromWeights(zeros, 4, 8, false, DType::kBF16, 0).scale, 0.0078125f);
  EXPECT_EQ(GridFromWeights(zeros, 4, 8, true, DType::kF16, 0).scale, 0.0009765625f);
  const float tiny[2] = {1e-12f, -1e-12f};  // underflows in f16
  const IntegerGrid grid = GridFromWeights(tiny, 2, 4, true, DType::kF16, 0);
  EXPECT_EQ(grid.scale, 0.0009765625f);
  EXPECT_EQ(CodeOf(tiny[0], grid, 4), 0);
}

TEST(IntegerGrid, ZeroIsAlwaysInsideAsymmetricRange) {
  const IntegerGrid positive = GridFromRange(1.0f, 3.0f, 8, false, DType::kF32, 0);
  EXPECT_EQ(positive.zero, -128);
  EXPECT_EQ(ValueOf(CodeOf(0.0f, positive, 8), positive), 0.0f);
  const IntegerGrid negative = GridFromRange(-3.0f, -1.0f, 8, false, DType::kF32, 0);
  EXPECT_EQ(negative.zero, 127);
  EXPECT_EQ(ValueOf(CodeOf(0.0f, negative, 8), negative), 0.0f);
}

TEST(IntegerGrid, ClipCutsTheRange) {
  const IntegerGrid full = GridFromRange(-2.0f, 4.0f, 4, true, DType::kF32, 0);
  const IntegerGrid clipped = GridFromRange(-2.0f, 4.0f, 4, true, DType::kF32, 0.25);
  EXPECT_FLOAT_EQ(clipped.scale, full.scale * 0.75f);
  EXPECT_EQ(CodeOf(4.0f, clipped, 4), 7);  // saturates
}

TEST(IntegerGrid, HugeRangeIsReportedAsInfiniteScale) {
  EXPECT_TRUE(std::isinf(GridFromRange(-1e30f, 1e30f, 8, false, DType::kF16, 0).scale));
}

TEST(ErrorMetrics, KnownValues) {
  const float x[] = {3, 4, 0}, q[] = {3, 4.5f, 0};
  const ErrorStats stats = MeasureError(x, q, 3);
  EXPECT_DOUBLE_EQ(stats.relative_l2, 0.1);
  EXPECT_DOUBLE_EQ(stats.max_abs, 0.5);
  EXPECT_DOUBLE_EQ(stats.mse, 0.25 / 3);
  EXPECT_EQ(MeasureError(x, x, 3).relative_l2, 0);
  const float zero[] = {0}, one[] = {1}, nan[] = {std::nanf("")};
  EXPECT_TRUE(std::isinf(MeasureError(zero, one, 1).relative_l2));
  EXPECT_TRUE(std::isnan(MeasureError(one, nan, 1).max_abs));
}

}  // namespace
}  // namespace sage
