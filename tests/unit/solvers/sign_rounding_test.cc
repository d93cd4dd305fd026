// Learned rounding: never worse than its start, better than plain rounding, deterministic, hostile starts refused.
#include "engine/solvers/sign_rounding.h"

#include "engine/base/status.h"
#include "engine/solvers/gptq.h"
#include "gtest/gtest.h"
#include "tests/unit/solvers/layer_problem.h"

namespace sage::sign_rounding_test {
namespace {

TEST(SignRounding, ImprovesPlainRounding) {
  ThreadPool threads(1);
  const LayerProblem layer = MakeLayer(24, 128, 500, 41);
  for (const int bits : {2, 3, 4}) {
    for (const bool symmetric : {true, false}) {
      SignRoundingOptions options;
      options.grid = {bits, 32, symmetric, DType::kBF16};
      const auto rtn = RoundToNearest(layer.weight, 24, 128, options.grid, threads);
      const auto solved = SolveSignRounding(layer.weight, 24, 128, layer.gram, *rtn, options, threads);
      ASSERT_TRUE(solved.ok()) << solved.status();
      const double before = GramError(layer.weight, ValuesOf(*rtn, 24, 128), layer.gram, 24, 128, threads);
      const double after = GramError(layer.weight, ValuesOf(solved->weight, 24, 128), layer.gram, 24, 128, threads);
      EXPECT_NEAR(solved->start_loss, before, 1e-6 * before);
      EXPECT_NEAR(solved->loss, after, 1e-6 * before);
      EXPECT_LT(after, 0.6 * before) << bits << symmetric;
      EXPECT_EQ(solved->improved_rows, 24);
      for (const float s : solved->weight.scale) ASSERT_EQ(s, RoundToDType(s, DType::kBF16));
    }
  }
}

TEST(SignRounding, NeverWorsensAnyRowOfGptq) {
  ThreadPool threads(1);
  const LayerProblem layer = MakeLayer(24, 128, 500, 42);
  for (const ActOrder order : {ActOrder::kNone, ActOrder::kGroup}) {
    for (const bool symmetric : {true, false}) {
      GptqOptions gptq;
      gptq.grid = {3, 32, symmetric, DType::kF32};
      gptq.order = order;
      const auto start = SolveGptq(layer.weight, 24, 128, layer.gram, {}, gptq, threads);
      ASSERT_TRUE(start.ok());
      SignRoundingOptions options;
      options.grid = gptq.grid;
      const auto solved = SolveSignRounding(layer.weight, 24, 128, layer.gram, start->weight, options, threads);
      ASSERT_TRUE(solved.ok()) << solved.status();
      EXPECT_EQ(solved->weight.g_idx, start->weight.g_idx);
      const auto rows = [&](const GridWeight& w) {
        return GramErrorOfRows(ValuesOf(w, 24, 128), layer.weight, layer.gram, 24, 128, threads);
      };
      const std::vector<double> before = rows(start->weight), after = rows(solved->weight);
      for (int n = 0; n < 24; ++n) EXPECT_LE(after[n], before[n]) << n;
      EXPECT_LT(solved->loss, solved->start_loss);
    }
  }
}

TEST(SignRounding, ThreadsChangeNoBit) {
  ThreadPool one(1), three(3);
  const LayerProblem layer = MakeLayer(19, 96, 300, 43);
  SignRoundingOptions options;
  options.grid = {4, 48, false, DType::kF16};
  options.iterations = 30;
  const auto rtn = RoundToNearest(layer.weight, 19, 96, options.grid, one);
  const auto a = SolveSignRounding(layer.weight, 19, 96, layer.gram, *rtn, options, one);
  const auto b = SolveSignRounding(layer.weight, 19, 96, layer.gram, *rtn, options, three);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->weight.codes, b->weight.codes);
  EXPECT_EQ(a->weight.scale, b->weight.scale);
  EXPECT_EQ(a->weight.zero, b->weight.zero);
  EXPECT_EQ(a->loss, b->loss);
}

TEST(SignRounding, LeavesARowThatIsExactAlone) {
  ThreadPool threads(1);
  const LayerProblem layer = MakeLayer(2, 16, 64, 44);
  SignRoundingOptions options;
  options.grid = {4, -1, true, DType::kF32};
  const auto rtn = RoundToNearest(layer.weight, 2, 16, options.grid, threads);
  const std::vector<float> exact = ValuesOf(*rtn, 2, 16);
  const auto solved = SolveSignRounding(exact, 2, 16, layer.gram, *rtn, options, threads);
  ASSERT_TRUE(solved.ok());
  EXPECT_EQ(solved->start_loss, 0);
  EXPECT_EQ(solved->loss, 0);
  EXPECT_EQ(solved->weight.codes, rtn->codes);
}

TEST(SignRounding, RefusesWithReasons) {
  ThreadPool threads(1);
  const LayerProblem layer = MakeLayer(2, 16, 64, 45);
  const SignRoundingOptions good = {{4, 8, true, DType::kF32}, 5};
  const GridWeight rtn = *RoundToNearest(layer.weight, 2, 16, good.grid, threads);
  const auto reason = [&](const std::vector<float>& gram, const GridWeight& start, const SignRoundingOptions& options) {
    return GetErrorReason(SolveSignRounding(layer.weight, 2, 16, gram, start, options, threads).status()).reason;
  };
  EXPECT_EQ(reason(layer.gram, rtn, good), "");
  EXPECT_EQ(reason({1.0f}, rtn, good), "BAD_GRAM_SHAPE");
  std::vector<float> bad_gram = layer.gram;
  bad_gram[3] = NAN;
  EXPECT_EQ(reason(bad_gram, rtn, good), "NON_FINITE_GRAM");
  for (int what = 0; what < 6; ++what) {
    GridWeight start = rtn;
    if (what == 0) start.codes.pop_back();
    if (what == 1) start.codes[0] = 8;
    if (what == 2) start.scale[0] = 0;
    if (what == 3) start.zero[1] = 1;
    if (what == 4) start.g_idx.assign(16, 2);
    if (what == 5) start.scale.clear();
    EXPECT_EQ(reason(layer.gram, start, good), "BAD_START") << what;
  }
  SignRoundingOptions options = good;
  options.iterations = 0;
  EXPECT_EQ(reason(layer.gram, rtn, options), "BAD_SEARCH");
  options = good;
  options.grid.group_size = 5;
  EXPECT_EQ(reason(layer.gram, rtn, options), "GROUP_SIZE_MUST_DIVIDE_K");
}

}  // namespace
}  // namespace sage::sign_rounding_test
