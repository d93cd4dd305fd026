// Descent on the grid: never worse than its start in any row, well below GPTQ, exact where the answer is on the grid,
// the same bits for every number of threads, hostile starts refused.
#include "engine/solvers/grid_descent.h"

#include "engine/base/status.h"
#include "engine/solvers/gptq.h"
#include "gtest/gtest.h"
#include "tests/unit/solvers/layer_problem.h"

namespace sage::grid_descent_test {
namespace {

std::vector<double> RowErrors(const GridWeight& w, const LayerProblem& layer, ThreadPool& threads) {
  return GramErrorOfRows(ValuesOf(w, layer.N, layer.K), layer.weight, layer.gram, layer.N, layer.K, threads);
}

TEST(GridDescent, NeverWorsensAnyRowOfGptq) {
  ThreadPool threads(1);
  const LayerProblem layer = MakeLayer(24, 128, 500, 51);
  for (const ActOrder order : {ActOrder::kGroupAware, ActOrder::kGroup}) {
    for (const bool symmetric : {true, false}) {
      for (const int bits : {2, 3, 4}) {
        GptqOptions gptq;
        gptq.grid = {bits, 32, symmetric, DType::kBF16};
        gptq.order = order;
        gptq.search_grid = true;
        const auto start = SolveGptq(layer.weight, 24, 128, layer.gram, {}, gptq, threads);
        ASSERT_TRUE(start.ok());
        GridDescentOptions options;
        options.grid = gptq.grid;
        const auto solved = SolveGridDescent(layer.weight, 24, 128, layer.gram, start->weight, options, threads);
        ASSERT_TRUE(solved.ok()) << solved.status();
        EXPECT_EQ(solved->weight.g_idx, start->weight.g_idx);
        EXPECT_GT(solved->moved_codes, 0);
        const std::vector<double> before = RowErrors(start->weight, layer, threads);
        const std::vector<double> after = RowErrors(solved->weight, layer, threads);
        double sum = 0;
        for (int n = 0; n < 24; ++n) {
          EXPECT_LE(after[n], before[n] * (1 + 1e-6)) << n;
          sum += after[n];
        }
        EXPECT_NEAR(solved->loss, sum, 1e-5 * sum);
        EXPECT_LT(solved->loss, 0.95 * solved->start_loss) << bits << symmetric;
        for (const float s : solved->weight.scale) ASSERT_EQ(s, RoundToDType(s, DType::kBF16));
      }
    }
  }
}

// Weights on a grid whose scales the start does not know: least squares finds them.
TEST(GridDescent, FindsScalesOfTheGrid) {
  ThreadPool threads(1);
  LayerProblem layer = MakeLayer(16, 64, 400, 52);
  GridSpec grid = {4, 16, true, DType::kF32};
  const auto exact = RoundToNearest(layer.weight, 16, 64, grid, threads);
  ASSERT_TRUE(exact.ok());
  layer.weight = ValuesOf(*exact, 16, 64);
  GridWeight start = *exact;
  for (size_t i = 0; i < start.scale.size(); ++i) start.scale[i] *= i % 2 == 0 ? 1.05f : 0.96f;
  GridDescentOptions options;
  options.grid = grid;
  options.rounds = 12;
  const auto solved = SolveGridDescent(layer.weight, 16, 64, layer.gram, start, options, threads);
  ASSERT_TRUE(solved.ok()) << solved.status();
  EXPECT_LT(solved->loss, 0.05 * solved->start_loss);
}

TEST(GridDescent, IdentityGramKeepsNearestCodes) {
  ThreadPool threads(1);
  const LayerProblem layer = MakeLayer(8, 64, 100, 53);
  std::vector<float> identity(64 * 64);
  for (int k = 0; k < 64; ++k) identity[k * 65] = 1;
  GridDescentOptions options;
  options.grid = {4, 16, false, DType::kF16};
  options.tune_scales = false;
  const auto rtn = RoundToNearest(layer.weight, 8, 64, options.grid, threads);
  const auto solved = SolveGridDescent(layer.weight, 8, 64, identity, *rtn, options, threads);
  ASSERT_TRUE(solved.ok()) << solved.status();
  EXPECT_EQ(solved->moved_codes, 0);
  EXPECT_EQ(solved->weight.codes, rtn->codes);
}

// Too many groups to fit their scales together keep those they came with.
TEST(GridDescent, ManyGroupsKeepTheirScales) {
  ThreadPool threads(2);
  const int64_t K = 1026;
  const LayerProblem layer = MakeLayer(2, K, 8, 56);
  std::vector<float> identity(static_cast<size_t>(K * K));
  for (int64_t k = 0; k < K; ++k) identity[static_cast<size_t>(k * (K + 1))] = 1;
  GridDescentOptions options;
  for (const auto& [group, kept] : {std::pair{1, true}, {2, false}}) {
    options.grid = {4, group, true, DType::kF32};
    const auto rtn = RoundToNearest(layer.weight, 2, K, options.grid, threads);
    const auto solved = SolveGridDescent(layer.weight, 2, K, identity, *rtn, options, threads);
    ASSERT_TRUE(solved.ok()) << solved.status();
    EXPECT_EQ(solved->weight.scale == rtn->scale, kept) << group;
    EXPECT_LE(solved->loss, solved->start_loss);
  }
}

TEST(GridDescent, ThreadsChangeNoBit) {
  ThreadPool one(1), three(3);
  const LayerProblem layer = MakeLayer(19, 96, 300, 54);
  GridDescentOptions options;
  options.grid = {4, 32, false, DType::kF16};
  const auto rtn = RoundToNearest(layer.weight, 19, 96, options.grid, one);
  const auto a = SolveGridDescent(layer.weight, 19, 96, layer.gram, *rtn, options, one);
  const auto b = SolveGridDescent(layer.weight, 19, 96, layer.gram, *rtn, options, three);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->weight.codes, b->weight.codes);
  EXPECT_EQ(a->weight.scale, b->weight.scale);
  EXPECT_EQ(a->loss, b->loss);
}

TEST(GridDescent, DeadInputsAndZeroWeightsStay) {
  ThreadPool threads(1);
  LayerProblem layer = MakeLayer(4, 32, 100, 55);
  for (int k = 0; k < 32; ++k) layer.gram[3 * 32 + k] = layer.gram[k * 32 + 3] = 0;
  for (int k = 0; k < 32; ++k) layer.weight[32 + k] = 0;
  GridDescentOptions options;
  options.grid = {4, 16, true, DType::kF32};
  const auto rtn = RoundToNearest(layer.weight, 4, 32, options.grid, threads);
  const auto solved = SolveGridDescent(layer.weight, 4, 32, layer.gram, *rtn, options, threads);
  ASSERT_TRUE(solved.ok()) << solved.status();
  for (int n = 0; n < 4; ++n) EXPECT_EQ(solved->weight.codes[n * 32 + 3], rtn->codes[n * 32 + 3]);
  for (int k = 0; k < 32; ++k) EXPECT_EQ(solved->weight.codes[32 + k], 0);
}

TEST(GridDescent, RefusesWhatDoesNotFit) {
  ThreadPool threads(1);
  const LayerProblem layer = MakeLayer(4, 32, 60, 56);
  GridDescentOptions options;
  options.grid = {4, 16, true, DType::kF32};
  const auto rtn = RoundToNearest(layer.weight, 4, 32, options.grid, threads);
  const auto reason = [&](const GridWeight& start, const GridDescentOptions& o, absl::Span<const float> gram) {
    return GetErrorReason(SolveGridDescent(layer.weight, 4, 32, gram, start, o, threads).status()).reason;
  };
  GridWeight bad = *rtn;
  bad.codes[5] = 9;
  EXPECT_EQ(reason(bad, options, layer.gram), "BAD_START");
  bad = *rtn;
  bad.scale[0] = 0;
  EXPECT_EQ(reason(bad, options, layer.gram), "BAD_START");
  bad = *rtn;
  bad.g_idx.assign(32, 7);
  EXPECT_EQ(reason(bad, options, layer.gram), "BAD_START");
  bad.g_idx.assign(32, 1);  // a group without inputs
  EXPECT_EQ(reason(bad, options, layer.gram), "BAD_START");
  GridDescentOptions none = options;
  none.rounds = 0;
  EXPECT_EQ(reason(*rtn, none, layer.gram), "BAD_SEARCH");
  EXPECT_EQ(reason(*rtn, options, absl::MakeConstSpan(layer.gram).subspan(1)), "BAD_GRAM_SHAPE");
}

}  // namespace
}  // namespace sage::grid_descent_test
