// The block's backward pass against finite differences, for every variant of architecture, and its independence of
// threads.
#include "engine/solvers/decoder_block.h"

#include <cmath>
#include <random>

#include "engine/solvers/attention_gradient.h"
#include "engine/solvers/block_math.h"
#include "gtest/gtest.h"

namespace sage::decoder_block_test {
namespace {

struct Variant {
  const char* name;
  int64_t H, KH, D;
  int64_t window;
  bool qk_norm, qkv_bias, all_bias;
  std::vector<int64_t> lengths;
};

struct Problem {
  BlockShape shape;
  std::array<std::vector<float>, kBlockLinears> weight, bias;
  std::array<std::vector<float>, kBlockNorms> norm;
  std::vector<int64_t> lengths;
  std::vector<float> x, cos, sin, slope;

  BlockWeights Weights() const {
    BlockWeights out;
    for (size_t i = 0; i < kBlockLinears; ++i) {
      out.weight[i] = weight[i].data();
      out.bias[i] = bias[i].empty() ? nullptr : bias[i].data();
    }
    for (size_t i = 0; i < kBlockNorms; ++i) out.norm[i] = norm[i].empty() ? nullptr : norm[i].data();
    return out;
  }
  BlockInput Input() const { return {lengths, x.data(), cos.data(), sin.data()}; }
};

Problem MakeProblem(const Variant& v, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  const auto fill = [&](std::vector<float>& values, int64_t count, float size, float middle) {
    values.resize(static_cast<size_t>(count));
    for (float& value : values) value = middle + size * normal(generator);
  };
  Problem out;
  out.shape = {24, 20, v.H, v.KH, v.D, v.window, 1e-5f, v.qk_norm, {}};
  for (int i = 0; i < kBlockLinears; ++i) {
    const size_t at = static_cast<size_t>(i);
    const int64_t N = out.shape.N(i), K = out.shape.K(i);
    fill(out.weight[at], N * K, 1.0f / std::sqrt(static_cast<float>(K)), 0);
    if (v.all_bias || (v.qkv_bias && i <= kBlockV)) fill(out.bias[at], N, 0.3f, 0);
  }
  for (int i = 0; i < kBlockNorms; ++i) fill(out.norm[static_cast<size_t>(i)], out.shape.NormWidth(i), 0.2f, 1);
  out.lengths = v.lengths;
  int64_t M = 0;
  for (const int64_t length : v.lengths) {
    for (int64_t position = 0; position < length; ++position) {
      for (int64_t d = 0; d < v.D / 2; ++d) {
        const float angle = static_cast<float>(position) * std::pow(100.0f, -2.0f * d / static_cast<float>(v.D));
        out.cos.push_back(1.1f * std::cos(angle));  // a scaling of the attention too
        out.sin.push_back(1.1f * std::sin(angle));
      }
    }
    M += length;
  }
  fill(out.x, M * out.shape.hidden, 1.0f, 0);
  fill(out.slope, M * out.shape.hidden, 1.0f, 0);
  return out;
}

double LossOf(const Problem& problem, ThreadPool& threads) {
  std::vector<float> out(problem.x.size());
  DecoderBlock block(problem.shape, threads);
  block.Forward(problem.Weights(), problem.Input(), out.data());
  double sum = 0;
  for (size_t i = 0; i < out.size(); ++i) sum += static_cast<double>(out[i]) * static_cast<double>(problem.slope[i]);
  return sum;
}

// Along one random direction of `values`: the slope that the gradient says and the one that two forwards say.
void CheckDirection(Problem& problem, std::vector<float>& values, const std::vector<float>& gradient,
                    const std::string& what) {
  ASSERT_EQ(values.size(), gradient.size()) << what;
  std::mt19937 generator(7);
  std::normal_distribution<float> normal;
  ThreadPool threads(1);
  const std::vector<float> before = values;
  std::vector<float> direction(values.size());
  double size = 0;
  for (float& value : direction) {
    value = normal(generator);
    size += static_cast<double>(value) * static_cast<double>(value);
  }
  double said = 0, length = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    said += static_cast<double>(gradient[i]) * static_cast<double>(direction[i]);
    length += static_cast<double>(gradient[i]) * static_cast<double>(gradient[i]);
  }
  const float step = 2e-3f;
  const auto at = [&](float distance) {
    for (size_t i = 0; i < values.size(); ++i) values[i] = before[i] + distance * direction[i];
    return LossOf(problem, threads);
  };
  // Fourth order: the second-order error of these curved functions would hide mistakes.
  const double found =
      (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12.0 * static_cast<double>(step));
  values = before;
  EXPECT_GT(length, 0) << what;
  EXPECT_NEAR(said, found, 2e-3 * std::sqrt(length * 1.0) + 5e-3) << what << " of length " << std::sqrt(length);
}

const Variant kVariants[] = {
    {"llama", 4, 2, 6, 0, false, false, false, {9, 5}},
    {"heads alike", 2, 2, 8, 0, false, false, false, {1, 12}},
    {"one kv head", 4, 1, 4, 0, false, false, false, {13}},
    {"qwen2: bias on q, k, v", 4, 2, 6, 0, false, true, false, {7, 7}},
    {"bias everywhere", 2, 1, 6, 0, false, false, true, {11}},
    {"qwen3: norms of q and k", 4, 2, 6, 0, true, false, false, {9, 5}},
    {"mistral: window", 4, 2, 6, 3, false, false, false, {9, 2}},
    {"several blocks of rows", 2, 1, 4, 0, false, false, false, {150}},
    {"several blocks of rows in a window", 2, 1, 4, 40, true, true, false, {150}},
};

TEST(DecoderBlock, GradientsAreThoseOfFiniteDifferences) {
  ThreadPool threads(2);
  for (const Variant& variant : kVariants) {
    Problem problem = MakeProblem(variant, 3);
    std::vector<float> out(problem.x.size());
    DecoderBlock block(problem.shape, threads);
    block.Forward(problem.Weights(), problem.Input(), out.data());
    BlockGradient gradient;
    block.Backward(problem.Weights(), problem.slope.data(), &gradient);
    for (size_t i = 0; i < kBlockLinears; ++i) {
      CheckDirection(problem, problem.weight[i], gradient.weight[i],
                     std::string(variant.name) + ", linear " + std::to_string(i));
    }
    for (size_t i = 0; i < kBlockNorms; ++i) {
      if (problem.norm[i].empty()) continue;
      CheckDirection(problem, problem.norm[i], gradient.norm[i],
                     std::string(variant.name) + ", norm " + std::to_string(i));
    }
  }
}

TEST(DecoderBlock, ThreadsChangeNoBit) {
  ThreadPool one(1), three(3);
  Problem problem = MakeProblem(kVariants[8], 5);
  BlockGradient a, b;
  std::vector<float> x(problem.x.size()), y(x.size());
  DecoderBlock alone(problem.shape, one), many(problem.shape, three);
  alone.Forward(problem.Weights(), problem.Input(), x.data());
  many.Forward(problem.Weights(), problem.Input(), y.data());
  alone.Backward(problem.Weights(), problem.slope.data(), &a);
  many.Backward(problem.Weights(), problem.slope.data(), &b);
  EXPECT_EQ(x, y);
  EXPECT_EQ(a.weight, b.weight);
  EXPECT_EQ(a.norm, b.norm);
}

// A second, shorter input through the same object.
TEST(DecoderBlock, KeepsNothingFromInputToInput) {
  ThreadPool threads(2);
  Problem longer = MakeProblem(kVariants[5], 5), shorter = longer;
  shorter.lengths = {4};
  std::vector<float> out(longer.x.size()), fresh(out.size());
  BlockGradient reused, first;
  DecoderBlock block(longer.shape, threads), other(longer.shape, threads);
  block.Forward(longer.Weights(), longer.Input(), out.data());
  block.Backward(longer.Weights(), longer.slope.data(), &reused);
  block.Forward(shorter.Weights(), shorter.Input(), out.data());
  block.Backward(shorter.Weights(), shorter.slope.data(), &reused);
  other.Forward(shorter.Weights(), shorter.Input(), fresh.data());
  other.Backward(shorter.Weights(), shorter.slope.data(), &first);
  for (int64_t i = 0; i < 4 * longer.shape.hidden; ++i) EXPECT_EQ(out[i], fresh[i]);
  EXPECT_EQ(reused.weight, first.weight);
  EXPECT_EQ(reused.norm, first.norm);
}

// Rounded inputs change the output by about their step, and the gradient passes through.
TEST(DecoderBlock, EightBitInputs) {
  ThreadPool threads(1);
  Problem problem = MakeProblem(kVariants[0], 9);
  std::vector<float> plain(problem.x.size()), rounded(plain.size());
  BlockGradient exact, through;
  DecoderBlock block(problem.shape, threads);
  block.Forward(problem.Weights(), problem.Input(), plain.data());
  block.Backward(problem.Weights(), problem.slope.data(), &exact);
  problem.shape.byte_inputs.fill(true);
  DecoderBlock bytes(problem.shape, threads);
  bytes.Forward(problem.Weights(), problem.Input(), rounded.data());
  bytes.Backward(problem.Weights(), problem.slope.data(), &through);
  const auto distance = [](const std::vector<float>& a, const std::vector<float>& b) {
    double sum = 0, all = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      sum += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
      all += static_cast<double>(a[i]) * a[i];
    }
    return std::sqrt(sum / all);
  };
  EXPECT_GT(distance(plain, rounded), 1e-4);
  EXPECT_LT(distance(plain, rounded), 2e-2);
  for (size_t i = 0; i < kBlockLinears; ++i) EXPECT_LT(distance(exact.weight[i], through.weight[i]), 5e-2) << i;
}

TEST(BlockMath, Exponential) {
  for (float x = -86.9f; x < 88.0f; x += 0.0137f) {
    EXPECT_NEAR(ExpOf(x) / std::exp(static_cast<double>(x)), 1.0, 3e-7) << x;
  }
  EXPECT_EQ(ExpOf(0), 1.0f);
  EXPECT_EQ(ExpOf(-200.0f), 0.0f);
  EXPECT_EQ(ExpOf(-std::numeric_limits<float>::infinity()), 0.0f);
  EXPECT_TRUE(std::isfinite(ExpOf(1e30f)));
  EXPECT_TRUE(std::isnan(ExpOf(std::numeric_limits<float>::quiet_NaN())));
}

}  // namespace
}  // namespace sage::decoder_block_test
