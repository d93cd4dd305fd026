// The growing histogram and the ranges found in it.
#include "engine/solvers/histogram.h"

#include <cmath>
#include <numeric>
#include <random>

#include "engine/base/status.h"
#include "gtest/gtest.h"

namespace sage::histogram_test {
namespace {

std::vector<float> Uniform(int64_t count, float most, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<float> out(count);
  for (float& v : out) v = most * (static_cast<float>(generator() % 2000001) / 1000000.0f - 1.0f);
  return out;
}

std::vector<float> Normal(int64_t count, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<float> out(count);
  for (float& v : out) {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += static_cast<double>(generator()) / 4294967296.0;
    v = static_cast<float>(sum);
  }
  return out;
}

int64_t Total(const Histogram& h) { return std::accumulate(h.bins().begin(), h.bins().end(), int64_t{0}); }

TEST(Histogram, GrowsWithBinsOfTheSameWidth) {
  Histogram h(256);
  const float zeros[5] = {}, first[] = {1.0f, -0.5f, 0.25f, 0.001f}, second[] = {-3.0f, 0.5f};
  ASSERT_TRUE(h.Add(zeros, 5).ok());
  EXPECT_EQ(h.max(), 0);
  ASSERT_TRUE(h.Add(first, 4).ok());
  EXPECT_EQ(h.bins().size(), 256u);
  EXPECT_EQ(h.bins()[0], 6);
  EXPECT_EQ(h.bins()[128], 1);
  EXPECT_EQ(h.bins()[255], 1);
  const double width = h.width();
  ASSERT_TRUE(h.Add(second, 2).ok());
  EXPECT_EQ(h.width(), width);
  EXPECT_EQ(h.bins().size(), 768u);
  EXPECT_EQ(h.bins()[128], 2);
  EXPECT_EQ(h.bins()[767], 1);
  EXPECT_EQ(h.count(), 11);
  EXPECT_EQ(Total(h), 11);
}

TEST(Histogram, StaysBoundedWhateverArrives) {
  Histogram h;
  for (const float size : {1e-40f, 1e-20f, 1.0f, 3e38f}) {
    const std::vector<float> x = Uniform(100, size, 1);
    ASSERT_TRUE(h.Add(x.data(), 100).ok());
    EXPECT_LE(h.bins().size(), static_cast<size_t>(kMostBins));
    EXPECT_LE(h.max(), h.width() * static_cast<double>(h.bins().size()) * 1.0001);
  }
  EXPECT_EQ(Total(h), 400);
  EXPECT_TRUE(MseRange(h, 8).ok());
  EXPECT_TRUE(KlRange(h, 8).ok());
}

TEST(Histogram, RefusesWithReasons) {
  Histogram h;
  EXPECT_EQ(GetErrorReason(PercentileRange(h, 99).status()).reason, "NO_ACTIVATIONS");
  const float bad[] = {1.0f, INFINITY};
  EXPECT_EQ(GetErrorReason(h.Add(bad, 2)).reason, "NON_FINITE_ACTIVATION");
  EXPECT_EQ(h.count(), 0);
  ASSERT_TRUE(h.Add(bad, 1).ok());
  for (const double percent : {0.0, -1.0, 100.5, static_cast<double>(NAN)}) {
    EXPECT_EQ(GetErrorReason(PercentileRange(h, percent).status()).reason, "BAD_PERCENTILE");
  }
  EXPECT_EQ(GetErrorReason(MseRange(h, 9).status()).reason, "BAD_BITS");
  EXPECT_EQ(GetErrorReason(KlRange(h, 1).status()).reason, "BAD_BITS");
}

TEST(Histogram, AllZerosGiveZero) {
  Histogram h;
  const float zeros[3] = {};
  ASSERT_TRUE(h.Add(zeros, 3).ok());
  EXPECT_EQ(*PercentileRange(h, 50), 0);
  EXPECT_EQ(*MseRange(h, 8), 0);
  EXPECT_EQ(*KlRange(h, 8), 0);
}

TEST(PercentileRange, IsTheEdgeOfTheBin) {
  Histogram h;
  std::vector<float> x(10000);
  for (int i = 0; i < 10000; ++i) x[i] = static_cast<float>(i + 1) * (i % 2 ? 1e-4f : -1e-4f);
  ASSERT_TRUE(h.Add(x.data(), 10000).ok());
  EXPECT_EQ(*PercentileRange(h, 100), h.max());
  for (const double percent : {1.0, 50.0, 99.0, 99.99}) {
    EXPECT_NEAR(*PercentileRange(h, percent), percent / 100, h.width() * 1.5) << percent;
  }
}

TEST(MseRange, ClipsOutliersOnlyWhereCodesAreFew) {
  Histogram h;
  std::vector<float> x = Normal(200000, 3);
  ASSERT_TRUE(h.Add(x.data(), 200000).ok());
  const double four = *MseRange(h, 4), eight = *MseRange(h, 8);
  EXPECT_GT(four, 2.0);  // about 2.6 for a normal distribution and 15 levels
  EXPECT_LT(four, 3.2);
  EXPECT_GT(eight, four);
  Histogram uniform;
  x = Uniform(100000, 2.0f, 4);
  ASSERT_TRUE(uniform.Add(x.data(), 100000).ok());
  EXPECT_GT(*MseRange(uniform, 8), 1.98);
}

TEST(KlRange, UniformKeepsItsMaximumAndOutliersGo) {
  Histogram uniform;
  std::vector<float> x = Uniform(500000, 2.0f, 5);
  ASSERT_TRUE(uniform.Add(x.data(), 500000).ok());
  EXPECT_GT(*KlRange(uniform, 8), 1.9);
  Histogram tailed;
  x = Normal(500000, 6);
  x[17] = 60.0f;
  ASSERT_TRUE(tailed.Add(x.data(), 500000).ok());
  const double range = *KlRange(tailed, 8);
  EXPECT_GT(range, 2.5);
  EXPECT_LT(range, 10.0);
}

}  // namespace
}  // namespace sage::histogram_test
