// Every KV strategy of the generated table on every backend: what is stored comes back within the strategy's bound, and
// attention over pages equals the naive f64 one over what was stored.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "engine/api/kv_strategy.h"
#include "gtest/gtest.h"

namespace sage {
namespace {

struct Case {
  int H, KH, D, page_tokens;
  int64_t context, rows, window;
};
constexpr Case kCases[] = {
    {4, 4, 64, 16, 0, 1, 0}, {9, 3, 64, 16, 0, 37, 0}, {8, 2, 128, 16, 45, 5, 0}, {4, 1, 32, 8, 70, 3, 20}};

std::vector<float> Normal(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> out(static_cast<size_t>(count));
  for (float& v : out) v = normal(random);
  return out;
}

// One head of one query over loaded K and V, [positions, KH * D] each.
std::vector<double> Naive(const Case& c, const float* q, int head, int64_t position, const std::vector<float>& k,
                          const std::vector<float>& v, double scale) {
  const int64_t width = static_cast<int64_t>(c.KH) * c.D, at = static_cast<int64_t>(head / (c.H / c.KH)) * c.D;
  const int64_t first = c.window > 0 ? std::max<int64_t>(0, position - c.window + 1) : 0;
  std::vector<double> weight, out(static_cast<size_t>(c.D), 0.0);
  double top = -1e300, sum = 0;
  for (int64_t j = first; j <= position; ++j) {
    double dot = 0;
    for (int64_t d = 0; d < c.D; ++d) dot += static_cast<double>(q[d]) * k[static_cast<size_t>(j * width + at + d)];
    weight.push_back(dot * scale);
    top = std::max(top, weight.back());
  }
  for (double& w : weight) sum += w = std::exp(w - top);
  for (int64_t j = first; j <= position; ++j) {
    for (int64_t d = 0; d < c.D; ++d) {
      out[static_cast<size_t>(d)] +=
          weight[static_cast<size_t>(j - first)] / sum * v[static_cast<size_t>(j * width + at + d)];
    }
  }
  return out;
}

void CheckCase(const KvStrategyDef& def, const Backend& backend, const Case& c, ThreadPool& threads) {
  const KvLayout layout{c.KH, c.D, c.page_tokens};
  const auto kernel = def.bind(layout, backend);
  ASSERT_TRUE(kernel.ok()) << kernel.status();
  ASSERT_EQ((*kernel)->page_bytes(), def.page_bytes(layout));
  const int64_t total = c.context + c.rows, width = static_cast<int64_t>(c.KH) * c.D;
  const int64_t pages = (total + c.page_tokens - 1) / c.page_tokens;
  Tensor arena = Tensor::Allocate(DType::kU8, {(pages + 2) * static_cast<int64_t>(def.page_bytes(layout))}).value();
  std::vector<int32_t> table;
  for (int64_t p = 0; p < pages; ++p) table.push_back(static_cast<int32_t>(pages - p));  // out of order on purpose
  const std::vector<float> k = Normal(total * width, 1), v = Normal(total * width, 2);
  StepContext ctx;
  ActivationCache cache;
  ctx.threads = &threads;
  ctx.activations = &cache;
  SequenceSlice before{0, c.context, 0, total, table.data()}, now{0, c.rows, c.context, total, table.data()};
  if (c.context > 0) {
    (*kernel)->Store(ctx, arena.as<uint8_t>(), k.data(), width, v.data(), width, absl::MakeConstSpan(&before, 1));
  }
  (*kernel)->Store(ctx, arena.as<uint8_t>(), k.data() + c.context * width, width, v.data() + c.context * width, width,
                   absl::MakeConstSpan(&now, 1));
  std::vector<float> k2(k.size()), v2(v.size());
  double error = 0, energy = 0;
  for (int64_t p = 0; p < total; ++p) {
    (*kernel)->Load(arena.as<uint8_t>(), table[static_cast<size_t>(p / c.page_tokens)],
                    static_cast<int>(p % c.page_tokens), k2.data() + p * width, v2.data() + p * width);
  }
  for (size_t i = 0; i < k.size(); ++i) {
    error += std::pow(k[i] - k2[i], 2) + std::pow(v[i] - v2[i], 2);
    energy += std::pow(k[i], 2) + std::pow(v[i], 2);
  }
  EXPECT_FALSE(!(std::sqrt(error / energy) <= def.tolerance)) << std::sqrt(error / energy);

  const std::vector<float> q = Normal(c.rows * c.H * c.D, 3);
  std::vector<float> out(q.size());
  AttentionArgs args;
  args.H = c.H;
  args.layout = layout;
  args.scale = 1.0f / std::sqrt(static_cast<float>(c.D));
  args.window = c.window;
  args.q = q.data();
  args.q_stride = args.out_stride = static_cast<int64_t>(c.H) * c.D;
  args.out = out.data();
  args.sequences = absl::MakeConstSpan(&now, 1);
  (*kernel)->Attend(ctx, arena.as<uint8_t>(), args);
  error = energy = 0;
  for (int64_t m = 0; m < c.rows; ++m) {
    for (int h = 0; h < c.H; ++h) {
      const int64_t at = m * args.q_stride + static_cast<int64_t>(h) * c.D;
      const std::vector<double> expected = Naive(c, q.data() + at, h, c.context + m, k2, v2, args.scale);
      for (int64_t d = 0; d < c.D; ++d) {
        error += std::pow(expected[static_cast<size_t>(d)] - out[static_cast<size_t>(at + d)], 2);
        energy += std::pow(expected[static_cast<size_t>(d)], 2);
      }
    }
  }
  // Arithmetic is f32 over the stored values; a kernel may round probabilities to the stored precision.
  EXPECT_FALSE(!(std::sqrt(error / energy) <= 1e-5 + def.tolerance)) << std::sqrt(error / energy);
}

TEST(KvConformance, StoreLoadAttend) {
  ThreadPool threads(3);
  ASSERT_FALSE(KvStrategies().empty());
  for (const BackendDef* backend_def : Backends()) {
    const auto backend = backend_def->open();
    if (!backend.ok()) {
      EXPECT_EQ(backend.status().code(), absl::StatusCode::kUnavailable) << backend.status();
      continue;
    }
    for (const KvStrategyDef* def : KvStrategies()) {
      for (const Case& c : kCases) {
        SCOPED_TRACE(testing::Message() << def->name << " on " << backend_def->name << " H=" << c.H << " D=" << c.D
                                        << " context=" << c.context << " rows=" << c.rows);
        CheckCase(*def, **backend, c, threads);
      }
    }
  }
}

}  // namespace
}  // namespace sage
