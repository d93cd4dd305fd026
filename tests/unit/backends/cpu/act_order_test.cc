// Act-order weights (g_idx) on the CPU: the same bits as the sorted layer, right sums, and activation forms that are
// shared only between equal orders.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "engine/api/backend.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "tests/random_values.h"

namespace sage {
namespace {

struct Layer {
  LinearWeight weight;
  int64_t groups = 0;
};

// Random codes and scales; offsets when not symmetric.
Layer MakeLayer(int64_t N, int64_t K, int64_t group_size, int bits, bool symmetric, std::vector<int32_t> g_idx,
                uint32_t seed) {
  std::mt19937 random(seed);
  Layer layer;
  layer.groups = (K + group_size - 1) / group_size;
  layer.weight.N = N;
  layer.weight.K = K;
  IntegerWeight& w = layer.weight.integer;
  w.bits = bits;
  w.group_size = group_size;
  w.g_idx = std::move(g_idx);
  const int half = 1 << (bits - 1);
  for (int64_t i = 0; i < N * K; ++i)
    w.codes.push_back(static_cast<int8_t>(static_cast<int>(random() % (2 * half)) - half));
  for (int64_t i = 0; i < N * layer.groups; ++i) {
    w.scale.push_back(0.01f + 0.001f * static_cast<float>(random() % 64));
    if (!symmetric) w.offset.push_back(-0.05f + 0.003f * static_cast<float>(random() % 32));
  }
  return layer;
}

absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(const Layer& layer, ThreadPool& threads) {
  const auto backend = OpenBackend("cpu");
  LinearKernelQuery query;
  query.strategy = layer.weight.integer.bits <= 4 ? "int4_w4a16" : "int8_w8a16";
  query.group_size = layer.weight.integer.group_size;
  query.symmetric = layer.weight.integer.offset.empty();
  return (*backend)->BindLinear(query, layer.weight, threads);
}

std::vector<float> Activations(int64_t count) { return Normal(count, 99); }

std::vector<float> RunLayer(const BoundLinear& bound, StepContext& ctx, int64_t id, const std::vector<float>& x) {
  const int64_t M = static_cast<int64_t>(x.size()) / bound.K();
  std::vector<float> out(static_cast<size_t>(M * bound.N()));
  bound.Forward(ctx, {id, x.data(), M, bound.K(), bound.K()}, out.data(), bound.N());
  return out;
}

// g_idx of GPTQ act-order: a random order of the inputs cut into groups of `group_size`.
std::vector<int32_t> ShuffledGroups(int64_t K, int64_t group_size, uint32_t seed, std::vector<int32_t>* order) {
  order->resize(static_cast<size_t>(K));
  for (size_t k = 0; k < order->size(); ++k) (*order)[k] = static_cast<int32_t>(k);
  std::mt19937 random(seed);
  for (size_t i = order->size() - 1; i > 0; --i) std::swap((*order)[i], (*order)[random() % (i + 1)]);
  std::vector<int32_t> g_idx(order->size());
  for (size_t i = 0; i < order->size(); ++i) {
    g_idx[static_cast<size_t>((*order)[i])] = static_cast<int32_t>(static_cast<int64_t>(i) / group_size);
  }
  return g_idx;
}

double RelativeError(const Layer& layer, const std::vector<float>& x, const std::vector<float>& got) {
  const IntegerWeight& w = layer.weight.integer;
  const int64_t N = layer.weight.N, K = layer.weight.K;
  double error = 0, energy = 0;
  for (size_t m = 0; m < x.size() / static_cast<size_t>(K); ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < K; ++k) {
        const int64_t g = w.g_idx.empty() ? k / w.group_size : w.g_idx[static_cast<size_t>(k)];
        const size_t at = static_cast<size_t>(n * layer.groups + g);
        const double value = static_cast<double>(w.scale[at]) * w.codes[static_cast<size_t>(n * K + k)] +
                             (w.offset.empty() ? 0.0 : w.offset[at]);
        sum += value * x[m * static_cast<size_t>(K) + static_cast<size_t>(k)];
      }
      error += std::pow(sum - got[m * static_cast<size_t>(N) + static_cast<size_t>(n)], 2);
      energy += sum * sum;
    }
  }
  return std::sqrt(error / energy);
}

TEST(ActOrder, EqualsTheSumOverTheRightGroups) {
  ThreadPool threads(2);
  for (const int bits : {2, 3, 4, 8}) {
    for (const auto& [N, K, group] :
         {std::tuple{17, 96, 32}, {64, 320, 64}, {33, 200, 48}, {20, 1100, 512}, {18, 1028, 514}}) {
      for (const bool symmetric : {true, false}) {
        std::vector<int32_t> order;
        const Layer layer = MakeLayer(N, K, group, bits, symmetric, ShuffledGroups(K, group, 3, &order), 5);
        const auto bound = Bind(layer, threads);
        ASSERT_TRUE(bound.ok()) << bound.status();
        EXPECT_EQ((*bound)->K(), K);
        for (const int64_t M : {1, 7}) {
          ActivationCache cache;
          StepContext ctx;
          ctx.threads = &threads;
          ctx.activations = &cache;
          const std::vector<float> x = Activations(M * K);
          EXPECT_LT(RelativeError(layer, x, RunLayer(**bound, ctx, 1, x)), 1e-3) << bits << " " << K << " " << group;
        }
      }
    }
  }
}

TEST(ActOrder, GivesTheBitsOfTheSortedLayer) {
  ThreadPool threads(1);
  const int64_t N = 40, K = 256, group = 64;
  std::vector<int32_t> order;
  const Layer layer = MakeLayer(N, K, group, 4, false, ShuffledGroups(K, group, 8, &order), 6);
  Layer sorted = layer;
  sorted.weight.integer.g_idx.clear();
  std::vector<int32_t> by_group;
  for (int32_t g = 0; g < 4; ++g) {
    for (int32_t k = 0; k < K; ++k) {
      if (layer.weight.integer.g_idx[static_cast<size_t>(k)] == g) by_group.push_back(k);
    }
  }
  const std::vector<float> x = Activations(3 * K);
  std::vector<float> x_sorted(x.size());
  for (size_t i = 0; i < static_cast<size_t>(K); ++i) {
    const size_t from = static_cast<size_t>(by_group[i]);
    for (size_t n = 0; n < static_cast<size_t>(N); ++n) {
      sorted.weight.integer.codes[n * K + i] = layer.weight.integer.codes[n * K + from];
    }
    for (size_t m = 0; m < 3; ++m) x_sorted[m * K + i] = x[m * K + from];
  }
  ActivationCache cache;
  StepContext ctx;
  ctx.threads = &threads;
  ctx.activations = &cache;
  const auto a = Bind(layer, threads), b = Bind(sorted, threads);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(RunLayer(**a, ctx, 1, x), RunLayer(**b, ctx, 2, x_sorted));
}

TEST(ActOrder, FormsAreSharedByEqualOrdersOnly) {
  ThreadPool threads(1);
  const int64_t N = 16, K = 128, group = 32;
  std::vector<int32_t> order;
  const std::vector<int32_t> first = ShuffledGroups(K, group, 1, &order), second = ShuffledGroups(K, group, 2, &order);
  const Layer layers[] = {MakeLayer(N, K, group, 4, true, first, 1), MakeLayer(N, K, group, 4, true, second, 2),
                          MakeLayer(N, K, group, 4, true, first, 3), MakeLayer(N, K, group, 4, true, {}, 4)};
  const std::vector<float> x = Activations(K);
  ActivationCache shared;
  StepContext ctx;
  ctx.threads = &threads;
  ctx.activations = &shared;
  const int64_t expected_hits[] = {0, 0, 1, 1};
  for (size_t i = 0; i < 4; ++i) {
    const auto bound = Bind(layers[i], threads);
    ASSERT_TRUE(bound.ok());
    ActivationCache own;
    StepContext alone = ctx;
    alone.activations = &own;
    EXPECT_EQ(RunLayer(**bound, ctx, 7, x), RunLayer(**bound, alone, 7, x)) << i;
    EXPECT_EQ(shared.hits(), expected_hits[i]) << i;
  }
}

TEST(ActOrder, ConsecutiveGroupsNeedNoOrder) {
  ThreadPool threads(1);
  for (const auto& [K, group] : {std::pair{96, 32}, {24, 8}, {1028, 514}}) {  // the last is padded either way
    std::vector<int32_t> g_idx(static_cast<size_t>(K));
    for (size_t k = 0; k < g_idx.size(); ++k) g_idx[k] = static_cast<int32_t>(k) / group;
    const Layer with = MakeLayer(16, K, group, 4, true, g_idx, 1), without = MakeLayer(16, K, group, 4, true, {}, 1);
    ActivationCache cache;
    StepContext ctx;
    ctx.threads = &threads;
    ctx.activations = &cache;
    const std::vector<float> x = Activations(K);
    const auto a = Bind(with, threads), b = Bind(without, threads);
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_EQ(RunLayer(**a, ctx, 1, x), RunLayer(**b, ctx, 1, x)) << group;
    EXPECT_EQ(cache.hits(), 1);
  }
}

TEST(ActOrder, GroupsOfUnequalLengthAreServedWithinReason) {
  ThreadPool threads(1);
  const int64_t N = 16, K = 128;
  std::vector<int32_t> g_idx(static_cast<size_t>(K));
  // 40, 40, 40 and 8 inputs, interleaved.
  for (size_t k = 0; k < g_idx.size(); ++k) g_idx[k] = k % 16 == 15 ? 3 : static_cast<int32_t>(k % 3);
  const Layer layer = MakeLayer(N, K, 32, 4, false, g_idx, 1);
  const auto bound = Bind(layer, threads);
  ASSERT_TRUE(bound.ok()) << bound.status();
  ActivationCache cache;
  StepContext ctx;
  ctx.threads = &threads;
  ctx.activations = &cache;
  const std::vector<float> x = Activations(5 * K);
  EXPECT_LT(RelativeError(layer, x, RunLayer(**bound, ctx, 1, x)), 1e-3);

  Layer lopsided = MakeLayer(N, 1024, 32, 4, true, std::vector<int32_t>(1024, 5), 1);
  EXPECT_EQ(GetErrorReason(Bind(lopsided, threads).status()).reason, "GROUPS_TOO_UNEQUAL");
  lopsided.weight.integer.g_idx.assign(1024, 32);
  EXPECT_EQ(GetErrorReason(Bind(lopsided, threads).status()).reason, "WEIGHT_NOT_SUPPORTED");
  lopsided.weight.integer.g_idx.assign(1023, 0);
  EXPECT_EQ(GetErrorReason(Bind(lopsided, threads).status()).reason, "WEIGHT_NOT_SUPPORTED");
  lopsided.weight.integer.g_idx.clear();
  lopsided.weight.integer.scale.pop_back();
  EXPECT_EQ(GetErrorReason(Bind(lopsided, threads).status()).reason, "WEIGHT_NOT_SUPPORTED");
}

}  // namespace
}  // namespace sage
