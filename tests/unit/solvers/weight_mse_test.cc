// The shrink search of weight ranges: never worse than the whole range, and importance moves what it gives up.
#include "engine/solvers/weight_mse.h"

#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "tests/unit/solvers/layer_problem.h"

namespace sage::weight_mse_test {
namespace {

double Error(const std::vector<float>& w, const std::vector<float>& q, const std::vector<float>& importance,
             double norm) {
  double sum = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    sum += std::pow(std::fabs(static_cast<double>(w[i] - q[i])), norm) *
           (importance.empty() ? 1.0 : static_cast<double>(importance[i % importance.size()]));
  }
  return sum;
}

TEST(WeightMse, IsTheBestOfItsCandidates) {
  ThreadPool threads(2);
  const LayerProblem layer = MakeLayer(6, 64, 50, 21);
  for (const bool symmetric : {true, false}) {
    for (const double norm : {2.0, 2.4}) {
      const GridSpec spec = {3, 16, symmetric, DType::kF16};
      const ShrinkSearch search = {50, 40, norm};
      const auto solved = SolveWeightMse(layer.weight, 6, 64, {}, spec, search, threads);
      ASSERT_TRUE(solved.ok());
      const std::vector<float> values = ValuesOf(*solved, 6, 64);
      for (int64_t at = 0; at < 6 * 64; at += 16) {
        const std::vector<float> w(layer.weight.begin() + at, layer.weight.begin() + at + 16);
        double least = 1e30;
        for (int t = 0; t < 40; ++t) {
          const IntegerGrid grid = GridFromWeights(w.data(), 16, 3, symmetric, DType::kF16, t / 50.0);
          std::vector<float> q(16);
          for (int i = 0; i < 16; ++i) q[i] = ValueOf(CodeOf(w[i], grid, 3), grid);
          least = std::min(least, Error(w, q, {}, norm));
        }
        EXPECT_DOUBLE_EQ(Error(w, {values.begin() + at, values.begin() + at + 16}, {}, norm), least);
      }
    }
  }
}

TEST(WeightMse, ImportanceCountsWhereInputsAreLarge) {
  ThreadPool threads(2);
  const LayerProblem layer = MakeLayer(30, 128, 400, 22);
  const std::vector<float> importance = ImportanceFromGram(layer.gram, 128, layer.M);
  double expected = 0;
  for (int64_t m = 0; m < layer.M; ++m) expected += std::pow(static_cast<double>(layer.x[m * 128 + 5]), 2);
  EXPECT_NEAR(importance[5], expected / static_cast<double>(layer.M), 1e-4 * expected);
  const GridSpec spec = {3, 64, true, DType::kF32};
  const auto rtn = RoundToNearest(layer.weight, 30, 128, spec, threads);
  const auto plain = SolveWeightMse(layer.weight, 30, 128, {}, spec, {100, 80, 2.0}, threads);
  const auto weighted = SolveWeightMse(layer.weight, 30, 128, importance, spec, {100, 80, 2.0}, threads);
  ASSERT_TRUE(rtn.ok() && plain.ok() && weighted.ok());
  const auto error = [&](const GridWeight& w, const std::vector<float>& by) {
    return Error(layer.weight, ValuesOf(w, 30, 128), by, 2.0);
  };
  EXPECT_LT(error(*plain, {}), error(*rtn, {}));
  EXPECT_LE(error(*plain, {}), error(*weighted, {}));
  EXPECT_LT(error(*weighted, importance), error(*plain, importance));
}

TEST(WeightMse, RefusesWithReasons) {
  ThreadPool threads(1);
  const std::vector<float> weight(32, 1.0f), short_one(3, 1.0f);
  const auto reason = [&](const std::vector<float>& importance, const GridSpec& spec) {
    return GetErrorReason(SolveWeightMse(weight, 2, 16, importance, spec, {}, threads).status()).reason;
  };
  EXPECT_EQ(reason(short_one, {}), "BAD_IMPORTANCE");
  std::vector<float> negative(16, 1.0f);
  negative[3] = -1;
  EXPECT_EQ(reason(negative, {}), "BAD_IMPORTANCE");
  EXPECT_EQ(reason({}, {4, 3, true, DType::kF32}), "GROUP_SIZE_MUST_DIVIDE_K");
}

}  // namespace
}  // namespace sage::weight_mse_test
