// Ranges of static scales: extremes over all batches, cuts by histogram, and the grids made of them.
#include "engine/solvers/activation_range.h"

#include <cmath>
#include <random>
#include <vector>

#include "engine/base/status.h"
#include "gtest/gtest.h"

namespace sage::activation_range_test {
namespace {

TEST(ActivationRange, ExtremesOfAllBatchesWhateverTheirOrder) {
  RangeObserver forward({}), backward({});
  const std::vector<std::vector<float>> batches = {{0.5f, -2.0f}, {3.0f}, {-1.0f, 1.0f}};
  for (size_t i = 0; i < 3; ++i) {
    ASSERT_TRUE(forward.Add(batches[i].data(), static_cast<int64_t>(batches[i].size())).ok());
    ASSERT_TRUE(backward.Add(batches[2 - i].data(), static_cast<int64_t>(batches[2 - i].size())).ok());
  }
  for (const RangeObserver* observer : {&forward, &backward}) {
    EXPECT_EQ(observer->Solve()->low, -2.0);
    EXPECT_EQ(observer->Solve()->high, 3.0);
    EXPECT_EQ(observer->absmax(), 3.0);
  }
}

TEST(ActivationRange, RulesCutLongTails) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(200000);
  for (float& v : x) {
    v = normal(random);
    v = v < 0 ? v * v * v : v;  // a long tail below zero
  }
  for (const RangeRule rule : {RangeRule::kPercentile, RangeRule::kMse, RangeRule::kKl}) {
    RangeObserver observer({rule, 99.99});
    ASSERT_TRUE(observer.Add(x.data(), static_cast<int64_t>(x.size())).ok());
    const auto range = observer.Solve();
    ASSERT_TRUE(range.ok()) << range.status();
    EXPECT_LT(range->most(), 0.99 * observer.absmax()) << static_cast<int>(rule);
    EXPECT_GT(range->most(), 4.0) << static_cast<int>(rule);
    EXPECT_LT(range->high, 6.0);  // never beyond what was seen on that side
    EXPECT_GT(range->high, 3.0);
  }
}

TEST(ActivationRange, GridsOfRanges) {
  const ActivationRange range{-1.0, 4.1};
  const StaticGrid symmetric = GridOfRange(range, true, DType::kF32);
  EXPECT_FLOAT_EQ(symmetric.scale, 4.1f / 127.0f);
  EXPECT_EQ(symmetric.zero, 0.0f);
  const StaticGrid full = GridOfRange(range, false, DType::kF32);
  EXPECT_FLOAT_EQ(full.scale, 0.02f);
  EXPECT_EQ(full.zero, -78.0f);  // round(1 / 0.02) - 128
  // The zero point belongs to the scale as it is stored.
  const StaticGrid stored = GridOfRange(range, false, DType::kBF16);
  EXPECT_NEAR(stored.scale, 0.02f, 0.0001f);
  EXPECT_EQ(stored.zero, std::nearbyint(1.0f / stored.scale) - 128.0f);
  EXPECT_FLOAT_EQ(FloatScaleOfRange(range, 448.0f, DType::kF32), 4.1f / 448.0f);
  // Inputs that are all zero keep a scale above it.
  EXPECT_GT(GridOfRange({0, 0}, true, DType::kBF16).scale, 0.0f);
  EXPECT_GT(GridOfRange({0, 0}, false, DType::kF16).scale, 0.0f);
}

TEST(ActivationRange, RefusesWhatIsNotFiniteAndNothing) {
  RangeObserver observer({RangeRule::kKl});
  EXPECT_EQ(GetErrorReason(observer.Solve().status()).reason, "NO_ACTIVATIONS");
  const float bad[] = {1.0f, std::nanf("")};
  EXPECT_EQ(GetErrorReason(observer.Add(bad, 2)).reason, "NON_FINITE_ACTIVATION");
  EXPECT_EQ(observer.absmax(), 0.0);
}

}  // namespace
}  // namespace sage::activation_range_test
