// Weights for changed inputs: exact where the change is linear, nothing where it is noise, bad sums refused.
#include "engine/solvers/output_target.h"

#include <random>

#include "engine/base/status.h"
#include "engine/solvers/grid_weight.h"
#include "gtest/gtest.h"
#include "tests/unit/solvers/layer_problem.h"

namespace sage::output_target_test {
namespace {

constexpr int64_t kN = 12, kK = 48, kM = 1200;

struct Sums {
  std::vector<float> gram, cross;
};

// Of tokens [begin, end) of x [M, K] with lacking outputs e [M, N].
Sums SumsOf(const std::vector<float>& x, const std::vector<float>& e, int64_t begin, int64_t end) {
  ThreadPool threads(1);
  GramSum gram(kK);
  CrossSum cross(kN, kK);
  gram.Add(x.data() + begin * kK, end - begin, threads);
  cross.Add(e.data() + begin * kN, x.data() + begin * kK, end - begin, threads);
  return {gram.Matrix<float>(threads), cross.Matrix<float>(threads)};
}

absl::StatusOr<TargetWeight> Solve(const LayerProblem& layer, const std::vector<float>& e) {
  ThreadPool threads(2);
  const Sums a = SumsOf(layer.x, e, 0, kM / 2), b = SumsOf(layer.x, e, kM / 2, kM);
  return SolveOutputTarget(layer.weight, {kN}, kK, {a.gram, a.cross}, {b.gram, b.cross}, {1e-4, 0.1}, threads);
}

TEST(OutputTarget, FindsALinearChange) {
  const LayerProblem layer = MakeLayer(kN, kK, kM, 61);
  const LayerProblem other = MakeLayer(kN, kK, 1, 62);  // its weights are the change
  ThreadPool threads(1);
  std::vector<float> e(kM * kN);
  MultiplyTransposed(layer.x.data(), other.weight.data(), kM, kN, kK, e.data(), threads);
  const auto target = Solve(layer, e);
  ASSERT_TRUE(target.ok()) << target.status();
  EXPECT_GT(target->strength[0], 0.99);
  std::vector<float> wanted = layer.weight;
  for (int64_t i = 0; i < kN * kK; ++i) wanted[i] += other.weight[i];
  const double left = GramError(target->weight, wanted, layer.gram, kN, kK, threads);
  EXPECT_LT(left, 1e-3 * GramError(layer.weight, wanted, layer.gram, kN, kK, threads));
}

TEST(OutputTarget, LeavesNoiseAlone) {
  const LayerProblem layer = MakeLayer(kN, kK, kM, 63);
  std::mt19937 generator(64);
  std::vector<float> e(kM * kN);
  for (float& v : e) v = static_cast<float>(generator() % 2001) / 1000.0f - 1.0f;
  const auto target = Solve(layer, e);
  ASSERT_TRUE(target.ok()) << target.status();
  EXPECT_LT(target->strength[0], 0.15);
}

TEST(OutputTarget, NothingLackingChangesNothing) {
  const LayerProblem layer = MakeLayer(kN, kK, kM, 65);
  const auto target = Solve(layer, std::vector<float>(kM * kN));
  ASSERT_TRUE(target.ok()) << target.status();
  EXPECT_EQ(target->strength[0], 0);
  EXPECT_EQ(target->weight, layer.weight);
}

TEST(OutputTarget, InputsWithoutTokensKeepTheirWeights) {
  LayerProblem layer = MakeLayer(kN, kK, kM, 66);
  for (int64_t m = 0; m < kM; ++m) layer.x[m * kK + 7] = 0;
  std::vector<float> e(kM * kN, 0.25f);
  const auto target = Solve(layer, e);
  ASSERT_TRUE(target.ok()) << target.status();
  for (int64_t n = 0; n < kN; ++n) EXPECT_EQ(target->weight[n * kK + 7], layer.weight[n * kK + 7]);
}

TEST(OutputTarget, RefusesWhatIsNotFinite) {
  ThreadPool threads(1);
  const LayerProblem layer = MakeLayer(kN, kK, kM, 67);
  Sums sums = SumsOf(layer.x, std::vector<float>(kM * kN), 0, kM);
  const auto reason = [&](double damp) {
    const TargetSums view = {sums.gram, sums.cross};
    return GetErrorReason(SolveOutputTarget(layer.weight, {kN}, kK, view, view, {damp}, threads).status()).reason;
  };
  EXPECT_EQ(reason(0), "BAD_DAMP");
  sums.cross[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(reason(0.01), "NON_FINITE_TARGET");
  sums.cross.pop_back();
  EXPECT_EQ(reason(0.01), "BAD_TARGET_SHAPE");
}

TEST(CrossSum, AgreesWithPlainSumsHoweverTheTokensAreCut) {
  ThreadPool one(1), three(3);
  const LayerProblem layer = MakeLayer(kN, kK, 700, 68);
  std::vector<float> e(700 * kN);
  for (size_t i = 0; i < e.size(); ++i) e[i] = static_cast<float>(i * 37 % 101) / 50.0f - 1.0f;
  CrossSum whole(kN, kK), parts(kN, kK);
  whole.Add(e.data(), layer.x.data(), 700, one);
  for (int64_t at = 0; at < 700; at += 90) {
    parts.Add(e.data() + at * kN, layer.x.data() + at * kK, std::min<int64_t>(90, 700 - at), three);
  }
  const std::vector<double> a = whole.Matrix<double>(one), b = parts.Matrix<double>(three);
  EXPECT_EQ(a, b);
  double sum = 0;
  for (int64_t m = 0; m < 700; ++m)
    sum += static_cast<double>(e[m * kN + 3]) * static_cast<double>(layer.x[m * kK + 5]);
  EXPECT_NEAR(a[3 * kK + 5], sum, 1e-3 * (1 + std::fabs(sum)));
}

}  // namespace
}  // namespace sage::output_target_test
