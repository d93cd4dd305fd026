// GPTQ and GPTAQ: against an unblocked f64 version, the self-checks of the method, orders, damping and refusals.
#include "engine/solvers/gptq.h"

#include <limits>
#include <numeric>

#include "engine/base/status.h"
#include "engine/solvers/triangular_factor.h"
#include "gtest/gtest.h"
#include "tests/unit/solvers/layer_problem.h"

namespace sage::gptq_test {
namespace {

std::vector<float> Identity(int64_t K, float value) {
  std::vector<float> out(K * K);
  for (int64_t k = 0; k < K; ++k) out[k * K + k] = value;
  return out;
}

void ExpectSame(const GridWeight& a, const GridWeight& b) {
  EXPECT_EQ(a.codes, b.codes);
  EXPECT_EQ(a.scale, b.scale);
  EXPECT_EQ(a.zero, b.zero);
  EXPECT_EQ(a.g_idx, b.g_idx);
}

TEST(Gptq, IdentityGramIsRoundToNearest) {
  ThreadPool threads(1);
  const LayerProblem layer = MakeLayer(5, 384, 8, 1);
  for (const int64_t group : {-1, 16, 48, 128, 192}) {
    for (const int bits : {2, 3, 4, 8}) {
      for (const ActOrder order : {ActOrder::kNone, ActOrder::kGroup, ActOrder::kStatic, ActOrder::kGroupAware}) {
        GptqOptions options;
        options.grid = {bits, group, bits != 3, bits == 4 ? DType::kF16 : DType::kF32};
        options.order = order;
        options.f64 = bits == 8;
        const auto rtn = RoundToNearest(layer.weight, 5, 384, options.grid, threads);
        const auto solved = SolveGptq(layer.weight, 5, 384, Identity(384, 3.0f), {}, options, threads);
        ASSERT_TRUE(rtn.ok() && solved.ok()) << solved.status();
        ExpectSame(*rtn, solved->weight);
      }
    }
  }
}

// The method column by column in f64, nothing blocked. Columns as they come.
GridWeight Unblocked(const LayerProblem& layer, const std::vector<float>& shift, const GptqOptions& options) {
  const int64_t N = layer.N, K = layer.K, width = GroupWidth(options.grid, K), G = K / width;
  ThreadPool threads(1);
  std::vector<double> h(layer.gram.begin(), layer.gram.end()), u(K * K), p(K * K);
  double mean = 0;
  for (int64_t k = 0; k < K; ++k) mean += h[k * K + k] / static_cast<double>(K);
  for (int64_t k = 0; k < K; ++k) h[k * K + k] += options.damp * mean;
  EXPECT_EQ(FactorUpper(h.data(), K, u.data(), 0, threads), -1);
  for (int64_t i = 0; i < K && !shift.empty(); ++i) {
    for (int64_t j = i + 1; j < K; ++j) {
      double product = 0;
      for (int64_t k = j; k < K; ++k) product += static_cast<double>(shift[i * K + k]) * u[j * K + k];
      for (int64_t k = j; k < K; ++k) p[i * K + k] += options.alpha * product * u[j * K + k];
    }
  }
  GridWeight out;
  out.codes.resize(N * K);
  for (int64_t n = 0; n < N; ++n) {
    std::vector<double> w(layer.weight.begin() + n * K, layer.weight.begin() + (n + 1) * K);
    IntegerGrid grid;
    for (int64_t i = 0; i < K; ++i) {
      if (i % width == 0) {
        const std::vector<float> group(w.begin() + i, w.begin() + i + width);
        grid = GridFromWeights(group.data(), width, options.grid.bits, options.grid.symmetric, options.grid.scale_dtype,
                               0);
        out.scale.push_back(grid.scale);
        out.zero.push_back(static_cast<float>(grid.zero));
      }
      out.codes[n * K + i] = CodeOf(static_cast<float>(w[i]), grid, options.grid.bits);
      const double before = w[i], error = (before - ValueOf(out.codes[n * K + i], grid)) / u[i * K + i];
      for (int64_t j = i + 1; j < K; ++j) w[j] += before * p[i * K + j] - error * u[i * K + j];
    }
  }
  EXPECT_EQ(out.scale.size(), static_cast<size_t>(N * G));
  return out;
}

double ShareOfEqualCodes(const GridWeight& a, const GridWeight& b) {
  int64_t same = 0;
  for (size_t i = 0; i < a.codes.size(); ++i) same += a.codes[i] == b.codes[i];
  return static_cast<double>(same) / static_cast<double>(a.codes.size());
}

std::vector<float> RandomShift(const LayerProblem& layer) {
  ThreadPool threads(1);
  std::vector<float> full = layer.x;
  std::mt19937 generator(5);
  for (float& v : full) v += 0.2f * (static_cast<float>(generator() % 1000) / 500.0f - 1.0f) * v;
  ShiftSum sum(layer.K);
  sum.Add(full.data(), layer.x.data(), layer.M, threads);
  return sum.Matrix<float>(threads);
}

TEST(Gptq, BlocksChangeNothing) {
  ThreadPool threads(1);
  const LayerProblem layer = MakeLayer(7, 480, 900, 2);
  for (const int64_t group : {-1, 32, 96, 160, 240}) {
    for (const bool shifted : {false, true}) {
      GptqOptions options;
      options.grid = {4, group, group != 96, DType::kF32};
      options.f64 = true;
      const std::vector<float> shift = shifted ? RandomShift(layer) : std::vector<float>();
      const GridWeight expected = Unblocked(layer, shift, options);
      const auto solved = SolveGptq(layer.weight, 7, 480, layer.gram, shift, options, threads);
      ASSERT_TRUE(solved.ok()) << solved.status();
      // Sums in another order may tip a tie, after which a row goes its own way.
      EXPECT_GT(ShareOfEqualCodes(expected, solved->weight), 0.97) << group << shifted;
    }
  }
}

TEST(Gptq, BeatsRoundToNearestInEveryOrder) {
  ThreadPool threads(1);
  for (const uint32_t seed : {3u, 4u, 5u}) {
    const LayerProblem layer = MakeLayer(40, 256, 700, seed);
    for (const int bits : {2, 3, 4, 8}) {
      for (const ActOrder order : {ActOrder::kNone, ActOrder::kGroup, ActOrder::kStatic, ActOrder::kGroupAware}) {
        GptqOptions options;
        options.grid = {bits, 64, seed != 4, DType::kBF16};
        options.order = order;
        const auto rtn = RoundToNearest(layer.weight, 40, 256, options.grid, threads);
        const auto solved = SolveGptq(layer.weight, 40, 256, layer.gram, {}, options, threads);
        ASSERT_TRUE(rtn.ok() && solved.ok()) << solved.status();
        const double before = GramError(layer.weight, ValuesOf(*rtn, 40, 256), layer.gram, 40, 256, threads);
        const std::vector<float> values = ValuesOf(solved->weight, 40, 256);
        const double after = GramError(layer.weight, values, layer.gram, 40, 256, threads);
        EXPECT_LT(after, before * 0.7) << bits << " bits, order " << static_cast<int>(order);
        std::vector<float> damped = layer.gram;
        double mean = 0;
        for (int64_t k = 0; k < 256; ++k) mean += layer.gram[k * 257] / 256.0;
        for (int64_t k = 0; k < 256; ++k) damped[k * 257] += static_cast<float>(0.01 * mean);
        const double loss = GramError(layer.weight, values, damped, 40, 256, threads);
        EXPECT_NEAR(solved->loss, loss, 2e-3 * loss);
      }
    }
  }
}

TEST(Gptq, GroupOrderGivesWholeGroups) {
  ThreadPool threads(1);
  const LayerProblem layer = MakeLayer(4, 192, 300, 6);
  GptqOptions options;
  options.grid.group_size = 32;
  options.order = ActOrder::kGroup;
  const auto solved = SolveGptq(layer.weight, 4, 192, layer.gram, {}, options, threads);
  ASSERT_TRUE(solved.ok());
  ASSERT_EQ(solved->weight.g_idx.size(), 192u);
  std::vector<float> least(6, std::numeric_limits<float>::infinity()), most(6);
  std::vector<int> members(6);
  for (int64_t k = 0; k < 192; ++k) {
    const int32_t g = solved->weight.g_idx[k];
    ASSERT_TRUE(g >= 0 && g < 6);
    ++members[g];
    least[g] = std::min(least[g], layer.gram[k * 193]);
    most[g] = std::max(most[g], layer.gram[k * 193]);
  }
  for (int g = 0; g < 6; ++g) {
    EXPECT_EQ(members[g], 32);
    if (g > 0) {
      EXPECT_LE(most[g], least[g - 1]);
    }
  }
  options.order = ActOrder::kGroupAware;
  EXPECT_TRUE(SolveGptq(layer.weight, 4, 192, layer.gram, {}, options, threads)->weight.g_idx.empty());
  options.order = ActOrder::kStatic;
  const auto fixed = SolveGptq(layer.weight, 4, 192, layer.gram, {}, options, threads);
  EXPECT_TRUE(fixed->weight.g_idx.empty());
  EXPECT_EQ(fixed->weight.scale, RoundToNearest(layer.weight, 4, 192, options.grid, threads)->scale);
}

TEST(Gptq, ThreadsChangeNoBit) {
  ThreadPool one(1), three(3);
  const LayerProblem layer = MakeLayer(33, 320, 500, 7);
  for (const bool f64 : {false, true}) {
    GptqOptions options;
    options.grid = {3, 80, false, DType::kF16};
    options.f64 = f64;
    options.search_grid = options.weighted_search = true;
    options.order = ActOrder::kGroupAware;
    const std::vector<float> shift = RandomShift(layer);
    const auto a = SolveGptq(layer.weight, 33, 320, layer.gram, shift, options, one);
    const auto b = SolveGptq(layer.weight, 33, 320, layer.gram, shift, options, three);
    ASSERT_TRUE(a.ok() && b.ok());
    ExpectSame(a->weight, b->weight);
    EXPECT_EQ(a->loss, b->loss);
  }
}

TEST(Gptq, CorrectionLowersTheErrorAgainstTheUnquantizedModel) {
  ThreadPool threads(1);
  const LayerProblem layer = MakeLayer(32, 128, 600, 8);
  // The quantized model's inputs have lost a part that the others tell of.
  std::vector<float> full = layer.x;
  for (int64_t m = 0; m < layer.M; ++m) {
    for (int64_t k = 0; k < 128; ++k) full[m * 128 + k] += 0.3f * layer.x[m * 128 + (k + 7) % 128];
  }
  ShiftSum sum(128);
  sum.Add(full.data(), layer.x.data(), layer.M, threads);
  const std::vector<float> shift = sum.Matrix<float>(threads);
  const auto distance = [&](const GridWeight& w) {
    const std::vector<float> q = ValuesOf(w, 32, 128);
    std::vector<float> y(layer.M * 32), target(layer.M * 32);
    MultiplyTransposed(layer.x.data(), q.data(), layer.M, 32, 128, y.data(), threads);
    MultiplyTransposed(full.data(), layer.weight.data(), layer.M, 32, 128, target.data(), threads);
    double error = 0;
    for (size_t i = 0; i < y.size(); ++i) error += std::pow(static_cast<double>(y[i] - target[i]), 2);
    return error;
  };
  GptqOptions options;
  options.grid.group_size = 32;
  const auto plain = SolveGptq(layer.weight, 32, 128, layer.gram, {}, options, threads);
  options.alpha = 1.0;
  const auto corrected = SolveGptq(layer.weight, 32, 128, layer.gram, shift, options, threads);
  options.alpha = 0;
  const auto none = SolveGptq(layer.weight, 32, 128, layer.gram, shift, options, threads);
  ASSERT_TRUE(plain.ok() && corrected.ok() && none.ok());
  EXPECT_LT(distance(corrected->weight), distance(plain->weight) * 0.9);
  ExpectSame(none->weight, plain->weight);
}

TEST(Gptq, DeadInputsAreRoundedToNearest) {
  ThreadPool threads(1);
  LayerProblem layer = MakeLayer(5, 64, 200, 9);
  for (int64_t m = 0; m < layer.M; ++m) layer.x[m * 64 + 10] = layer.x[m * 64 + 40] = 0;
  GramSum sum(64);
  sum.Add(layer.x.data(), layer.M, threads);
  const std::vector<float> gram = sum.Matrix<float>(threads);
  GptqOptions options;
  options.order = ActOrder::kStatic;
  const auto solved = SolveGptq(layer.weight, 5, 64, gram, {}, options, threads);
  ASSERT_TRUE(solved.ok());
  EXPECT_EQ(solved->dead_columns, 2);
  const auto rtn = RoundToNearest(layer.weight, 5, 64, options.grid, threads);
  for (int64_t n = 0; n < 5; ++n) {
    EXPECT_EQ(solved->weight.codes[n * 64 + 10], rtn->codes[n * 64 + 10]);
    EXPECT_EQ(solved->weight.codes[n * 64 + 40], rtn->codes[n * 64 + 40]);
  }
}

TEST(Gptq, ClimbsTheDampingLadderThenGivesUp) {
  ThreadPool threads(1);
  const LayerProblem few = MakeLayer(4, 96, 20, 10);  // rank 20
  GptqOptions options;
  options.damp = 0;
  auto solved = SolveGptq(few.weight, 4, 96, few.gram, {}, options, threads);
  ASSERT_TRUE(solved.ok()) << solved.status();
  EXPECT_GT(solved->damp, 0);
  options.damp_ladder.clear();
  solved = SolveGptq(few.weight, 4, 96, few.gram, {}, options, threads);
  EXPECT_EQ(GetErrorReason(solved.status()).reason, "GRAM_NOT_POSITIVE_DEFINITE");
  std::vector<float> indefinite = Identity(96, 1.0f);
  indefinite[1] = indefinite[96] = 5.0f;
  solved = SolveGptq(few.weight, 4, 96, indefinite, {}, GptqOptions(), threads);
  EXPECT_EQ(GetErrorReason(solved.status()).reason, "GRAM_NOT_POSITIVE_DEFINITE");
  EXPECT_NE(solved.status().message().find("0.01, 0.03, 0.1, 0.3, 1"), std::string::npos);
}

TEST(Gptq, RefusesWithReasons) {
  ThreadPool threads(1);
  const LayerProblem layer = MakeLayer(3, 16, 64, 11);
  const auto reason = [&](const std::vector<float>& weight, const std::vector<float>& gram,
                          const std::vector<float>& shift, const GptqOptions& options) {
    return GetErrorReason(SolveGptq(weight, 3, 16, gram, shift, options, threads).status()).reason;
  };
  GptqOptions options;
  EXPECT_EQ(reason({1, 2}, layer.gram, {}, options), "BAD_LAYER_SHAPE");
  EXPECT_EQ(reason(layer.weight, {1, 2}, {}, options), "BAD_GRAM_SHAPE");
  EXPECT_EQ(reason(layer.weight, layer.gram, {1, 2}, options), "BAD_SHIFT_SHAPE");
  std::vector<float> bad = layer.weight;
  bad[7] = NAN;
  EXPECT_EQ(reason(bad, layer.gram, {}, options), "NON_FINITE_WEIGHT");
  bad = layer.gram;
  bad[7] = INFINITY;
  EXPECT_EQ(reason(layer.weight, bad, {}, options), "NON_FINITE_GRAM");
  EXPECT_EQ(reason(layer.weight, layer.gram, bad, options), "NON_FINITE_SHIFT");
  bad = layer.gram;
  bad[17] = -1;
  EXPECT_EQ(reason(layer.weight, bad, {}, options), "GRAM_NOT_POSITIVE");
  bad[17] = 0;
  EXPECT_EQ(reason(layer.weight, bad, {}, options), "GRAM_NOT_POSITIVE");
  EXPECT_EQ(reason(layer.weight, std::vector<float>(256), {}, options), "NO_ACTIVATIONS");
  options.grid.bits = 9;
  EXPECT_EQ(reason(layer.weight, layer.gram, {}, options), "BAD_BITS");
  options.grid = {4, 5, true, DType::kF32};
  EXPECT_EQ(reason(layer.weight, layer.gram, {}, options), "GROUP_SIZE_MUST_DIVIDE_K");
  options.grid = {4, 0, true, DType::kF32};
  EXPECT_EQ(reason(layer.weight, layer.gram, {}, options), "GROUP_SIZE_MUST_DIVIDE_K");
  options.grid = {4, 4, true, DType::kI8};
  EXPECT_EQ(reason(layer.weight, layer.gram, {}, options), "BAD_SCALE_DTYPE");
  options.grid = {4, 4, true, DType::kF16};
  std::vector<float> wide(48, 1e6f);
  EXPECT_EQ(reason(wide, layer.gram, {}, options), "SCALE_OUT_OF_RANGE");
  options.order = ActOrder::kStatic;
  EXPECT_EQ(reason(wide, layer.gram, {}, options), "SCALE_OUT_OF_RANGE");
  options = GptqOptions();
  options.damp = NAN;
  EXPECT_EQ(reason(layer.weight, layer.gram, {}, options), "BAD_DAMP");
  options = GptqOptions();
  options.alpha = 2;
  EXPECT_EQ(reason(layer.weight, layer.gram, {}, options), "BAD_ALPHA");
}

TEST(RemainingEnergy, IsTheDiagonalWhereInputsAreIndependentAndLessElsewhere) {
  ThreadPool threads(2);
  const std::vector<float> alone = {4, 0, 0, 0, 0, 0, 0, 0, 9};  // the second input was never active
  GptqOptions options;
  options.damp = 0;
  const auto found = RemainingEnergy(alone, 3, options, threads);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_NEAR((*found)[0], 4, 1e-5);
  EXPECT_EQ((*found)[1], 0);
  EXPECT_NEAR((*found)[2], 9, 1e-5);
  const std::vector<float> bound = {4, 3, 3, 9};  // the first can be made up for by the second: 4 - 3 * 3 / 9
  const auto less = RemainingEnergy(bound, 2, options, threads);
  ASSERT_TRUE(less.ok()) << less.status();
  EXPECT_NEAR((*less)[0], 3, 1e-5);
  EXPECT_NEAR((*less)[1], 9, 1e-5);
  EXPECT_EQ(GetErrorReason(RemainingEnergy(bound, 3, options, threads).status()).reason, "BAD_GRAM_SHAPE");
}

}  // namespace
}  // namespace sage::gptq_test
