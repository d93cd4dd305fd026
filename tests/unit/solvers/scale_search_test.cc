// AWQ's and SmoothQuant's building blocks: statistics, candidates, errors by samples and by Gram matrix, clip search.
#include "engine/solvers/scale_search.h"

#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "tests/unit/solvers/layer_problem.h"

namespace sage::scale_search_test {
namespace {

TEST(InputMagnitude, CountsAllBatches) {
  ThreadPool threads(2);
  InputMagnitude stats(3);
  const float x[] = {1, -2, 0, 9, -3, 2, 0, 9}, bad[] = {1, NAN, 0};
  ASSERT_TRUE(stats.Add(x, 2, 4, threads).ok());  // the fourth value of a row is not an input
  EXPECT_EQ(GetErrorReason(stats.Add(bad, 1, 3, threads)).reason, "NON_FINITE_ACTIVATION");
  ASSERT_TRUE(stats.Add(x, 1, 3, threads).ok());
  EXPECT_EQ(stats.tokens(), 3);
  EXPECT_EQ(stats.Mean(), (std::vector<float>{5.0f / 3, 2, 0}));
  EXPECT_EQ(stats.Max(), (std::vector<float>{3, 2, 0}));
}

TEST(AwqScales, FollowTheFormula) {
  const std::vector<float> x = {1, 4, 16};
  const std::vector<float> half = AwqScales(x, {}, 0.5);  // 1 2 4 over sqrt(4)
  EXPECT_FLOAT_EQ(half[0], 0.5f);
  EXPECT_FLOAT_EQ(half[1], 1.0f);
  EXPECT_FLOAT_EQ(half[2], 2.0f);
  EXPECT_EQ(AwqScales(x, {}, 0), (std::vector<float>{1, 1, 1}));
  const std::vector<float> w = {0.25f, 1, 0.25f};
  const std::vector<float> duo = AwqScales(x, w, 0.5);
  const double a = 1 / (0.5 + 1e-4), b = 2 / (1 + 1e-4), c = 4 / (0.5 + 1e-4), middle = std::sqrt(c * a);
  EXPECT_NEAR(duo[0], a / middle, 1e-6);
  EXPECT_NEAR(duo[1], b / middle, 1e-6);
  EXPECT_NEAR(duo[2], c / middle, 1e-6);
  const std::vector<float> zero(3);
  for (const float s : AwqScales(zero, zero, 0.5)) EXPECT_TRUE(std::isfinite(s) && s > 0);
}

TEST(AwqScales, WeightMeanIsRelativeToItsGroup) {
  const std::vector<float> a = {1, -2, 0, 4}, b = {2, 2, 3, 0};
  const LayerWeight layers[] = {{a, 1}, {b, 1}};
  const std::vector<float> mean = MeanOfWeights(layers, 4, 2);
  EXPECT_NEAR(mean[0], 0.75, 1e-5);
  EXPECT_NEAR(mean[1], 1.0, 1e-5);
  EXPECT_NEAR(mean[2], 0.5, 1e-5);
  EXPECT_NEAR(mean[3], 0.5, 1e-5);
  EXPECT_EQ(MaxOfWeights(layers, 4), (std::vector<float>{2, 2, 3, 4}));
}

TEST(SmoothScales, FollowTheFormula) {
  const std::vector<float> x = {16, 0}, w = {4, 0};
  const std::vector<float> s = SmoothScales(x, w, 0.75);
  EXPECT_FLOAT_EQ(s[0], 8.0f / std::sqrt(2.0f));
  EXPECT_FLOAT_EQ(s[1], std::sqrt(1e-5f));
}

TEST(FakeQuantize, ScalesOfOneAreRoundToNearest) {
  ThreadPool threads(2);
  const LayerProblem layer = MakeLayer(6, 64, 20, 31);
  const GridSpec spec = {4, 32, false, DType::kF16};
  const std::vector<float> ones(64, 1.0f);
  const auto rtn = RoundToNearest(layer.weight, 6, 64, spec, threads);
  EXPECT_EQ(*FakeQuantize(layer.weight, 6, 64, ones, spec, threads), ValuesOf(*rtn, 6, 64));
  EXPECT_EQ(*FakeQuantize(layer.weight, 6, 64, {}, spec, threads), ValuesOf(*rtn, 6, 64));
}

TEST(OutputError, EqualsTheGramError) {
  ThreadPool threads(2);
  const LayerProblem layer = MakeLayer(20, 96, 333, 32);
  const auto q = FakeQuantize(layer.weight, 20, 96, {}, {3, 32, true, DType::kF32}, threads);
  const double by_samples = OutputError(layer.weight, *q, 20, 96, layer.x.data(), layer.M, threads);
  const double by_gram = GramError(layer.weight, *q, layer.gram, 20, 96, threads);
  EXPECT_NEAR(by_samples, by_gram, 1e-4 * by_samples);
  EXPECT_GT(by_samples, 0);
}

TEST(SearchAwqScales, LowersTheErrorWhereInputsDiffer) {
  ThreadPool one(1), three(3);
  const LayerProblem a = MakeLayer(24, 128, 500, 33), b = MakeLayer(40, 128, 10, 34);
  InputMagnitude stats(128);
  ASSERT_TRUE(stats.Add(a.x.data(), a.M, 128, one).ok());
  const LayerWeight layers[] = {{a.weight, 24}, {b.weight, 40}};
  for (const AwqCandidates candidates : {AwqCandidates::kActivations, AwqCandidates::kDuo, AwqCandidates::kBoth}) {
    const GridSpec spec = {3, 32, true, DType::kF32};
    const auto best = SearchAwqScales(layers, 128, stats.Mean(), a.gram, spec, 20, candidates, one);
    const auto again = SearchAwqScales(layers, 128, stats.Mean(), a.gram, spec, 20, candidates, three);
    ASSERT_TRUE(best.ok() && again.ok());
    EXPECT_LT(best->error, best->identity_error * 0.9);
    EXPECT_EQ(best->scales, again->scales);
    EXPECT_EQ(best->error, again->error);
    double error = 0;
    for (const LayerWeight& layer : layers) {
      const auto q = FakeQuantize(layer.values, layer.N, 128, best->scales, spec, one);
      error += GramError(layer.values, *q, a.gram, layer.N, 128, one);
    }
    EXPECT_NEAR(error, best->error, 1e-6 * error);
  }
}

TEST(SearchCompensatedScales, FollowTheEnergyThatIsLeft) {
  ThreadPool one(1), three(3);
  const LayerProblem a = MakeLayer(300, 64, 500, 35);  // more rows than are tried
  InputMagnitude stats(64);
  ASSERT_TRUE(stats.Add(a.x.data(), a.M, 64, one).ok());
  const LayerWeight layers[] = {{a.weight, 300}};
  const GridSpec spec = {3, 32, false, DType::kF32};
  std::vector<float> energy(64, 1.0f);
  for (int64_t k = 0; k < 64; k += 7) energy[k] = 400.0f;  // what mean |x| knows nothing of
  const auto best = SearchCompensatedScales(layers, 64, stats.Mean(), energy, spec, 20, one);
  const auto again = SearchCompensatedScales(layers, 64, stats.Mean(), energy, spec, 20, three);
  ASSERT_TRUE(best.ok() && again.ok());
  EXPECT_EQ(best->scales, again->scales);
  EXPECT_EQ(best->error, again->error);
  EXPECT_LT(best->error, 0.7 * best->identity_error);
  for (int64_t k = 0; k < 64; ++k) {
    if (k % 7 == 0) continue;
    EXPECT_LT(best->scales[k], best->scales[k / 7 * 7]) << k;
  }
  const std::vector<float> bad(64, std::nanf(""));
  EXPECT_EQ(GetErrorReason(SearchCompensatedScales(layers, 64, stats.Mean(), bad, spec, 20, one).status()).reason,
            "BAD_STATISTICS");
}

TEST(SearchAwqScales, KeepsPlainRoundingWhereNothingIsBetter) {
  ThreadPool threads(1);
  std::vector<float> weight(64), gram(64);
  for (int i = 0; i < 64; ++i) weight[i] = static_cast<float>(i * 7 % 16 - 8) * 0.5f;  // on the 4-bit grid
  for (int i = 0; i < 8; ++i) weight[i * 8] = -4.0f, weight[i * 8 + 1] = 3.5f, gram[i * 9] = static_cast<float>(1 + i);
  const std::vector<float> x_mean = {1, 2, 3, 4, 5, 6, 7, 8};
  const LayerWeight layers[] = {{weight, 8}};
  const auto best =
      SearchAwqScales(layers, 8, x_mean, gram, {4, -1, false, DType::kF32}, 20, AwqCandidates::kBoth, threads);
  ASSERT_TRUE(best.ok());
  EXPECT_TRUE(best->identity);
  EXPECT_EQ(best->scales, std::vector<float>(8, 1.0f));
}

TEST(SearchSmoothAlpha, LowersTheErrorOfRoundedInputs) {
  ThreadPool threads(2);
  const LayerProblem layer = MakeLayer(32, 128, 200, 35);
  InputMagnitude stats(128);
  ASSERT_TRUE(stats.Add(layer.x.data(), layer.M, 128, threads).ok());
  const LayerWeight layers[] = {{layer.weight, 32}};
  const double alphas[] = {0.5, 0.6, 0.7, 0.8, 0.9};
  const auto best = SearchSmoothAlpha(layers, 128, stats.Max(), layer.x.data(), layer.M, {8, -1, true, DType::kF32}, 8,
                                      alphas, threads);
  ASSERT_TRUE(best.ok()) << best.status();
  EXPECT_LT(best->error, best->identity_error * 0.8);
  EXPECT_GE(best->alpha, 0.5);
}

TEST(SearchClip, IsNeverWorseAndUsesTheGroupsBlock) {
  ThreadPool one(1), three(3);
  LayerProblem layer = MakeLayer(300, 96, 400, 36);
  for (int64_t n = 0; n < 300; ++n) layer.weight[n * 96 + n % 96] *= 3.0f;
  const GridSpec spec = {3, 32, true, DType::kF32};
  const auto best = SearchClip(layer.weight, 300, 96, layer.gram, spec, one);
  const auto again = SearchClip(layer.weight, 300, 96, layer.gram, spec, three);
  ASSERT_TRUE(best.ok() && again.ok());
  EXPECT_EQ(best->limit, again->limit);
  EXPECT_LT(best->error, best->whole_error * 0.95);
  // The reported errors are those of the clipped and of the plain weights under the block-diagonal Gram matrix.
  std::vector<float> blocks = layer.gram, clipped = layer.weight;
  for (int64_t i = 0; i < 96; ++i) {
    for (int64_t j = 0; j < 96; ++j) blocks[i * 96 + j] *= i / 32 == j / 32 ? 1.0f : 0.0f;
  }
  ClipWeights(clipped.data(), 300, 96, best->limit);
  const auto q = FakeQuantize(clipped, 300, 96, {}, spec, one),
             plain = FakeQuantize(layer.weight, 300, 96, {}, spec, one);
  EXPECT_NEAR(GramError(layer.weight, *q, blocks, 300, 96, one), best->error, 1e-3 * best->error);
  EXPECT_NEAR(GramError(layer.weight, *plain, blocks, 300, 96, one), best->whole_error, 1e-3 * best->whole_error);
}

TEST(ScaleSearch, RefusesWithReasons) {
  ThreadPool threads(1);
  const LayerProblem layer = MakeLayer(2, 16, 30, 37);
  const LayerWeight layers[] = {{layer.weight, 2}};
  const std::vector<float> mean(16, 1.0f), few(3, 1.0f);
  const double alphas[] = {0.5}, bad_alpha[] = {1.5};
  const auto awq = [&](absl::Span<const LayerWeight> l, const std::vector<float>& x, const std::vector<float>& gram,
                       const GridSpec& spec) {
    return GetErrorReason(SearchAwqScales(l, 16, x, gram, spec, 20, AwqCandidates::kDuo, threads).status()).reason;
  };
  EXPECT_EQ(awq({}, mean, layer.gram, {}), "NO_LAYERS");
  EXPECT_EQ(awq(layers, few, layer.gram, {}), "BAD_STATISTICS");
  EXPECT_EQ(awq(layers, mean, few, {}), "BAD_STATISTICS");
  EXPECT_EQ(awq(layers, mean, layer.gram, {4, 7, true, DType::kF32}), "GROUP_SIZE_MUST_DIVIDE_K");
  EXPECT_EQ(GetErrorReason(SearchClip(layer.weight, 2, 16, few, {}, threads).status()).reason, "BAD_STATISTICS");
  const auto smooth = [&](int64_t M, int bits, absl::Span<const double> a) {
    const auto got =
        SearchSmoothAlpha(layers, 16, mean, layer.x.data(), M, {8, -1, true, DType::kF32}, bits, a, threads);
    return GetErrorReason(got.status()).reason;
  };
  EXPECT_EQ(smooth(0, 8, alphas), "BAD_SEARCH");
  EXPECT_EQ(smooth(30, 1, alphas), "BAD_SEARCH");
  EXPECT_EQ(smooth(30, 8, {}), "BAD_SEARCH");
  EXPECT_EQ(smooth(30, 8, bad_alpha), "BAD_ALPHA");
}

}  // namespace
}  // namespace sage::scale_search_test
