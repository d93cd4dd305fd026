// Attention of the CPU: the same bits in every tier, what pages hold exactly, and what the kernels refuse.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/backends/cpu/kernel.h"
#include "engine/backends/cpu/kv_page_format.h"
#include "engine/quant/fp8.h"
#include "gtest/gtest.h"
#include "tests/random_values.h"

namespace sage {
namespace {

std::vector<float> Values(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(count);
  for (float& x : out) x = normal(random) * std::exp2(static_cast<float>(random() % 8));
  return out;
}

struct Shape {
  int H, KH, D, page_tokens;
  int64_t total, rows, window;
};

std::vector<float> AttendWith(const AttentionKernelDef& def, const Shape& s, const std::vector<float>& q,
                              const std::vector<float>& k, const std::vector<float>& v) {
  const KvLayout layout{s.KH, s.D, s.page_tokens, s.H};
  const auto kernel = def.bind(layout).value();
  const int64_t pages = (s.total + s.page_tokens - 1) / s.page_tokens, width = int64_t{s.KH} * s.D;
  Tensor arena = Tensor::Allocate(DType::kU8, {pages * static_cast<int64_t>(kernel->page_bytes())}).value();
  std::vector<int32_t> table;
  for (int64_t p = 0; p < pages; ++p) table.push_back(static_cast<int32_t>(pages - 1 - p));
  ThreadPool pool(2);
  StepContext ctx;
  ctx.threads = &pool;
  const SequenceSlice all{0, s.total, 0, s.total, table.data()};
  kernel->Store(ctx, arena.as<uint8_t>(), k.data(), width, v.data(), width, absl::MakeConstSpan(&all, 1));
  const SequenceSlice last{0, s.rows, s.total - s.rows, s.total, table.data()};
  std::vector<float> out(q.size());
  AttentionArgs args;
  args.H = s.H;
  args.layout = layout;
  args.scale = 0.02f;
  args.window = s.window;
  args.q = q.data();
  args.out = out.data();
  args.q_stride = args.out_stride = int64_t{s.H} * s.D;
  args.sequences = absl::MakeConstSpan(&last, 1);
  kernel->Attend(ctx, arena.as<uint8_t>(), args);
  return out;
}

TEST(CpuAttention, TiersGiveTheSameBits) {
  const Shape shapes[] = {{9, 3, 64, 16, 600, 1, 0},  {9, 3, 64, 16, 270, 70, 0}, {12, 2, 128, 16, 300, 1, 0},
                          {4, 4, 8, 16, 33, 33, 0},   {7, 1, 96, 32, 290, 3, 40}, {2, 1, 33, 64, 260, 20, 0},
                          {20, 1, 80, 16, 100, 5, 0}, {6, 6, 200, 256, 300, 2, 0}};
  int compared = 0;
  for (const Shape& s : shapes) {
    const std::vector<float> k = Values(static_cast<size_t>(s.total * s.KH * s.D), 1), v = Values(k.size(), 2);
    const std::vector<float> q = Values(static_cast<size_t>(s.rows * s.H * s.D), 3);
    for (const AttentionKernelDef* generic : CpuAttentionKernels()) {
      const std::string name(generic->name);
      if (name.size() < 8 || name.substr(name.size() - 8) != "_generic") continue;
      const std::vector<float> expected = AttendWith(*generic, s, q, k, v);
      for (const float x : expected) ASSERT_TRUE(std::isfinite(x)) << name;
      for (const AttentionKernelDef* def : CpuAttentionKernels()) {
        if (def == generic || def->kv_strategy != generic->kv_strategy) continue;
        if (!def->refuse({s.KH, s.D, s.page_tokens, s.H}, HostCpu()).empty()) continue;
        const std::vector<float> got = AttendWith(*def, s, q, k, v);
        EXPECT_EQ(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)), 0)
            << def->name << " D=" << s.D << " rows=" << s.rows;
        ++compared;
      }
    }
  }
  if (compared == 0) GTEST_SKIP() << "this machine runs the generic tier only";
}

TEST(CpuAttention, RefusalsSayWhy) {
  const auto refuse = [](const KvLayout& layout) { return cpu::RefuseKvLayout(layout); };
  EXPECT_EQ(refuse({3, 64, 16, 9}), "");
  EXPECT_EQ(refuse({3, 64, 256, 0}), "");
  EXPECT_EQ(refuse({3, 64, 16, 10}), "needs KH to divide H, got H=10, KH=3");
  EXPECT_EQ(refuse({0, 64, 16, 8}), "needs KH in [1, 4096], got KH=0");
  EXPECT_EQ(refuse({3, 0, 16, 9}), "needs D in [1, 1024], got D=0");
  EXPECT_EQ(refuse({3, 1025, 16, 9}), "needs D in [1, 1024], got D=1025");
  for (const int tokens : {-16, 0, 8, 24, 48, 512}) {
    EXPECT_EQ(refuse({3, 64, tokens, 9}),
              "needs page_tokens of 16, 32, 64, 128 or 256, got page_tokens=" + std::to_string(tokens));
  }
  const auto backend = OpenBackend("cpu").value();
  const auto bound = backend->BindKv("fp8_e4m3", {3, 64, 16, 10});
  EXPECT_NE(bound.status().message().find("needs KH to divide H, got H=10, KH=3"), std::string::npos);
}

// What a position reads as a value (or a key), for one head of D values stored alone at slot 5 after a first one.
std::vector<float> RoundTrip(cpu::KvFormat format, const std::vector<float>& first, const std::vector<float>& x,
                             bool key = false) {
  const int D = static_cast<int>(x.size());
  const cpu::KvPageFormat pages({1, D, 16, 1}, format);
  std::vector<uint8_t> page(pages.page_bytes(), 0xff);
  std::vector<float> k(x.size()), v(x.size());
  pages.StoreRow(page.data(), 0, first.data(), first.data());
  pages.StoreRow(page.data(), 5, x.data(), x.data());
  pages.LoadRow(page.data(), 5, k.data(), v.data());
  // Only 8-bit floats keep keys by another rule than values.
  const bool floats = format == cpu::KvFormat::kE4M3 || format == cpu::KvFormat::kE5M2;
  for (size_t i = 0; i < k.size(); ++i) {
    EXPECT_TRUE(floats || k[i] == v[i] || (std::isnan(k[i]) && std::isnan(v[i])));
  }
  return key ? k : v;
}

TEST(KvPageFormat, StoresTheNearestCodes) {
  const std::vector<float> x = Values(48, 12), first = Values(48, 13);
  float most = 0;
  for (const float value : x) most = std::max(most, std::fabs(value));
  const std::vector<float> e4m3 = RoundTrip(cpu::KvFormat::kE4M3, first, x);
  const std::vector<float> e5m2 = RoundTrip(cpu::KvFormat::kE5M2, first, x);
  const std::vector<float> int8 = RoundTrip(cpu::KvFormat::kInt8, first, x);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(int8[i], std::nearbyint(x[i] / (most / 127)) * (most / 127));
  // Floats take the best of a few scales, the one that maps the largest value to the largest code among them.
  double lost[2] = {}, plain[2] = {};
  for (size_t i = 0; i < x.size(); ++i) {
    const double value = x[i];
    lost[0] += (e4m3[i] - value) * (e4m3[i] - value);
    lost[1] += (e5m2[i] - value) * (e5m2[i] - value);
    const double four = static_cast<double>(DecodeE4M3(EncodeE4M3(x[i] / (most / 448)))) * (most / 448);
    const double five = static_cast<double>(DecodeE5M2(EncodeE5M2(x[i] / (most / 57344)))) * (most / 57344);
    plain[0] += (four - value) * (four - value);
    plain[1] += (five - value) * (five - value);
    EXPECT_LE(std::fabs(e4m3[i] - x[i]), most / 14);
    EXPECT_LE(std::fabs(e5m2[i] - x[i]), most / 7);
  }
  EXPECT_LE(lost[0], plain[0] * 1.000001);
  EXPECT_LE(lost[1], plain[1] * 1.000001);
}

// Keys that share much with the first of their page lose a fraction of what they lose without it.
TEST(KvPageFormat, KeysAreKeptAsWhatTheyDifferByFromTheFirstOfTheirPage) {
  const std::vector<float> zero(64, 0.0f);
  for (const float size : {1e-3f, 1.0f, 20.0f}) {
    double lost = 0, alone = 0;
    for (uint32_t seed = 0; seed < 40; ++seed) {
      std::vector<float> first = Normal(64, 20 + seed), x = Normal(64, 80 + seed);
      for (std::vector<float>* row : {&first, &x}) {
        (*row)[3] += 100.0f;
        (*row)[35] -= 150.0f;
        for (float& value : *row) value *= size;
      }
      const std::vector<float> with = RoundTrip(cpu::KvFormat::kE4M3, first, x, true);
      const std::vector<float> without = RoundTrip(cpu::KvFormat::kE4M3, zero, x, true);
      for (size_t i = 0; i < x.size(); ++i) {
        lost += std::pow((with[i] - x[i]) / size, 2);
        alone += std::pow((without[i] - x[i]) / size, 2);
      }
    }
    EXPECT_LT(lost, alone / 40) << size;
  }
}

// A first key that later ones have nothing in common with, or that is not finite, changes nothing for them.
TEST(KvPageFormat, AFirstKeyThatDoesNotHelpIsLeftAlone) {
  const std::vector<float> zero(64, 0.0f), x = Values(64, 15);
  std::vector<float> opposite = x, broken(64, std::nanf("")), huge(64, 3e38f);
  for (float& value : opposite) value = -value;
  const std::vector<float> alone = RoundTrip(cpu::KvFormat::kE5M2, zero, x, true);
  for (const auto& first : {opposite, broken, huge}) {
    EXPECT_EQ(RoundTrip(cpu::KvFormat::kE5M2, first, x, true), alone);
  }
}

TEST(KvPageFormat, ChannelsThatStandOutGetCoarserSteps) {
  std::vector<float> first(64, 1.0f), x = Values(64, 14);
  for (float& value : x) value = std::clamp(value, -3.0f, 3.0f);
  first[7] = -40.0f;
  x[7] = 37.0f;
  const std::vector<float> channel = RoundTrip(cpu::KvFormat::kInt8Channel, first, x);
  const std::vector<float> token = RoundTrip(cpu::KvFormat::kInt8, first, x);
  double channel_error = 0, token_error = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (i == 7) continue;
    channel_error += std::pow(channel[i] - x[i], 2);
    token_error += std::pow(token[i] - x[i], 2);
  }
  EXPECT_LT(channel_error, token_error / 30);
  EXPECT_NEAR(channel[7], x[7], 0.5f);
  // A first position that says nothing: no shifts, and what comes later is not clipped.
  const std::vector<float> zero(64, 0.0f);
  EXPECT_EQ(RoundTrip(cpu::KvFormat::kInt8Channel, zero, x), token);
  const std::vector<float> broken(64, std::numeric_limits<float>::infinity());
  EXPECT_EQ(RoundTrip(cpu::KvFormat::kInt8Channel, broken, x), token);
}

TEST(KvPageFormat, Extremes) {
  const float inf = std::numeric_limits<float>::infinity(), most = std::numeric_limits<float>::max();
  for (const cpu::KvFormat format : {cpu::KvFormat::kF32, cpu::KvFormat::kBF16, cpu::KvFormat::kE4M3,
                                     cpu::KvFormat::kE5M2, cpu::KvFormat::kInt8, cpu::KvFormat::kInt8Channel}) {
    const std::vector<float> zeros(20, 0.0f);
    EXPECT_EQ(RoundTrip(format, zeros, zeros), zeros);
    std::vector<float> large(20, 1.0f);
    large[3] = -most;
    for (const float value : RoundTrip(format, large, large)) EXPECT_TRUE(std::isfinite(value));
    EXPECT_NEAR(RoundTrip(format, zeros, large)[3] / -most, 1.0f, 0.01f);
    const std::vector<float> tiny(20, 0x1p-140f);
    for (const float value : RoundTrip(format, tiny, tiny)) EXPECT_NEAR(value, 0.0f, 0x1p-100f);
    for (const float bad : {inf, -inf, std::nanf("")}) {
      std::vector<float> x(20, 1.0f);
      x[11] = bad;
      EXPECT_FALSE(std::isfinite(RoundTrip(format, zeros, x)[11]));
    }
  }
}

}  // namespace
}  // namespace sage
