// Kernels of float codes: against f64, and the same bits in every tier, for every batch and any number of threads.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "engine/backends/cpu/bound_linears.h"
#include "engine/backends/cpu/tiers.h"
#include "engine/base/status.h"
#include "engine/quant/fp8.h"
#include "engine/quant/nf4.h"
#include "gtest/gtest.h"
#include "tests/random_values.h"

namespace sage::cpu {
namespace {

using Kind = FloatCodeWeight::Kind;

struct Layer {
  LinearWeight weight;
  std::vector<uint8_t> codes;
  std::vector<double> values;  // [N, K]

  double Value(Kind kind, int64_t i) const {
    if (kind == Kind::kE4M3) return DecodeE4M3(codes[static_cast<size_t>(i)]);
    if (kind == Kind::kE5M2) return DecodeE5M2(codes[static_cast<size_t>(i)]);
    const uint8_t byte = codes[static_cast<size_t>(i / 2)];
    const bool high = (i % 2 == 0) == weight.floats.high_nibble_first;
    return weight.floats.table[high ? byte >> 4 : byte & 15];
  }
};

// block: columns of a scale block, or the flat block when `flat`.
Layer Make(Kind kind, int64_t N, int64_t K, int64_t block_rows, int64_t block, bool flat, bool bias, uint32_t seed) {
  std::mt19937 random(seed);
  Layer out;
  FloatCodeWeight& w = out.weight.floats;
  out.weight.N = N;
  out.weight.K = K;
  w.kind = kind;
  w.high_nibble_first = flat;
  const int64_t bytes = kind == Kind::kTable16 ? (N * K + 1) / 2 : N * K;
  for (int64_t i = 0; i < bytes; ++i) {
    uint8_t code = static_cast<uint8_t>(random());
    if (kind == Kind::kE4M3 && !IsFiniteE4M3(code)) code = 0x3a;
    if (kind == Kind::kE5M2) code = static_cast<uint8_t>((code & 0x8f) | 0x30);  // magnitudes near 1
    out.codes.push_back(code);
  }
  w.codes = out.codes.data();
  w.bytes = out.codes.size();
  if (kind == Kind::kTable16) w.table.assign(kNf4Table.begin(), kNf4Table.end());
  std::uniform_real_distribution<float> scale(0.001f, 0.01f);
  if (flat) {
    w.flat_block = block;
    w.scale.resize(static_cast<size_t>((N * K + block - 1) / block));
  } else {
    w.block_rows = block_rows;
    w.block_columns = block;
    w.scale.resize(static_cast<size_t>(((N + block_rows - 1) / block_rows) * ((K + block - 1) / block)));
  }
  for (float& s : w.scale) s = scale(random);
  if (bias) {
    for (int64_t n = 0; n < N; ++n) out.weight.bias.push_back(scale(random) * 100);
  }
  for (int64_t i = 0; i < N * K; ++i) {
    const int64_t n = i / K, k = i % K;
    const int64_t at = flat ? i / block : n / block_rows * ((K + block - 1) / block) + k / block;
    out.values.push_back(out.Value(kind, i) * w.scale[static_cast<size_t>(at)]);
  }
  return out;
}

std::vector<float> Inputs(int64_t count) { return Normal(count, 77); }

std::vector<float> RunForward(const BoundLinear& bound, const std::vector<float>& x, int64_t M, ThreadPool& threads) {
  ActivationCache cache;
  StepContext ctx;
  ctx.threads = &threads;
  ctx.activations = &cache;
  std::vector<float> out(static_cast<size_t>(M * bound.N()));
  bound.Forward(ctx, {ctx.NewValue(), x.data(), M, bound.K(), bound.K()}, out.data(), bound.N());
  return out;
}

std::vector<const TierFns*> HostTiers() {
  std::vector<const TierFns*> out;
  for (const TierFns* tier : {&kGenericTier, &kAvx2Tier, &kAvx512Tier}) {
    if (RefuseTier(tier->name, HostCpu()).empty()) out.push_back(tier);
  }
  return out;
}

void CheckLayer(const Layer& layer, const std::string& what) {
  const int64_t N = layer.weight.N, K = layer.weight.K;
  constexpr int64_t kRows = 19;
  const std::vector<float> x = Inputs(kRows * K);
  std::vector<double> want(static_cast<size_t>(kRows * N));
  double energy = 0;
  for (int64_t m = 0; m < kRows; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double sum = layer.weight.bias.empty() ? 0.0 : layer.weight.bias[static_cast<size_t>(n)];
      for (int64_t k = 0; k < K; ++k) {
        sum += layer.values[static_cast<size_t>(n * K + k)] * x[static_cast<size_t>(m * K + k)];
      }
      want[static_cast<size_t>(m * N + n)] = sum;
      energy += sum * sum;
    }
  }
  ThreadPool one(1), three(3);
  std::vector<float> first;
  for (const TierFns* tier : HostTiers()) {
    const auto bound = BindFloatPanels(layer.weight, three, *tier, tier->name);
    ASSERT_TRUE(bound.ok()) << bound.status();
    const std::vector<float> all = RunForward(**bound, x, kRows, three);
    double error = 0;
    for (size_t i = 0; i < all.size(); ++i) error += std::pow(all[i] - want[i], 2);
    EXPECT_LE(std::sqrt(error / energy), 1e-6) << what << " " << tier->name;
    for (const int64_t M : {1, 2, 3, 4, 5, 8, 12}) {
      for (ThreadPool* threads : {&one, &three}) {
        const std::vector<float> some = RunForward(**bound, x, M, *threads);
        EXPECT_EQ(std::memcmp(some.data(), all.data(), some.size() * 4), 0) << what << " " << tier->name << " M=" << M;
      }
    }
    if (first.empty()) first = all;
    EXPECT_EQ(std::memcmp(first.data(), all.data(), all.size() * 4), 0) << what << ": tiers differ at " << tier->name;
  }
}

TEST(FloatPanels, EqualTheProductInEveryTier) {
  struct Case {
    Kind kind;
    int64_t N, K, block_rows, block;
    bool flat;
  };
  const Case cases[] = {
      {Kind::kE4M3, 16, 64, 1, 64, false},        {Kind::kE4M3, 1, 1, 1, 1, false},
      {Kind::kE4M3, 37, 300, 1, 300, false},      {Kind::kE4M3, 130, 260, 128, 128, false},
      {Kind::kE4M3, 70, 513, 70, 513, false},     {Kind::kE4M3, 33, 96, 1, 32, false},
      {Kind::kE5M2, 37, 301, 1, 301, false},      {Kind::kTable16, 48, 128, 1, 64, true},
      {Kind::kTable16, 21, 160, 1, 64, true},     {Kind::kTable16, 9, 101, 1, 64, true},
      {Kind::kTable16, 1, 7, 1, 64, true},        {Kind::kTable16, 150, 576, 1, 64, true},
      {Kind::kTable16, 80, 96, 1, 32, false},     {Kind::kTable16, 5, 1024, 1, 4096, true},
      {Kind::kTable16, 130, 2048, 1, 128, false},
  };
  uint32_t seed = 1;
  for (const Case& c : cases) {
    for (const bool bias : {false, true}) {
      const Layer layer = Make(c.kind, c.N, c.K, c.block_rows, c.block, c.flat, bias, seed++);
      CheckLayer(layer, testing::PrintToString(std::vector<int64_t>{c.N, c.K, c.block}));
    }
  }
}

// Every code of a format against one input of 1: the decoded value itself.
TEST(FloatPanels, EveryCodeIsExact) {
  ThreadPool threads(1);
  for (const TierFns* tier : HostTiers()) {
    for (const Kind kind : {Kind::kE4M3, Kind::kE5M2}) {
      Layer layer;
      for (int code = 0; code < 256; ++code) {
        const uint8_t byte = static_cast<uint8_t>(code);
        layer.codes.push_back((kind == Kind::kE4M3 ? IsFiniteE4M3(byte) : IsFiniteE5M2(byte)) ? byte : 0);
      }
      layer.weight.N = 256;
      layer.weight.K = 1;
      FloatCodeWeight& w = layer.weight.floats;
      w.kind = kind;
      w.codes = layer.codes.data();
      w.bytes = 256;
      w.block_rows = 256;
      w.block_columns = 1;
      w.scale = {1.0f};
      const auto bound = BindFloatPanels(layer.weight, threads, *tier, "k");
      ASSERT_TRUE(bound.ok()) << bound.status();
      const std::vector<float> out = RunForward(**bound, {1.0f}, 1, threads);
      for (size_t i = 0; i < 256; ++i) {
        EXPECT_EQ(out[i], layer.Value(kind, static_cast<int64_t>(i))) << tier->name << " code " << i;
      }
    }
  }
}

TEST(FloatPanels, ActivationsAreRoundedByTheirScheme) {
  using Activations = FloatActivations::Kind;
  ThreadPool threads(2);
  Layer layer = Make(Kind::kE4M3, 40, 256, 1, 256, false, false, 3);
  const std::vector<float> x = Inputs(5 * 256);
  struct Scheme {
    Activations kind;
    int64_t group;
    float scale;
  };
  for (const Scheme& scheme : {Scheme{Activations::kDynamic, -1, 0}, Scheme{Activations::kDynamic, 128, 0},
                               Scheme{Activations::kStatic, -1, 0.004f}}) {
    layer.weight.floats.activations = {scheme.kind, scheme.group, scheme.scale};
    std::vector<double> rounded(x.size());
    const size_t group = scheme.group > 0 ? static_cast<size_t>(scheme.group) : 256;
    for (size_t begin = 0; begin < x.size(); begin += group) {
      float scale = scheme.scale, amax = 0;
      for (size_t i = begin; i < begin + group; ++i) amax = std::max(amax, std::fabs(x[i]));
      if (scheme.kind == Activations::kDynamic) scale = amax / 448.0f;
      for (size_t i = begin; i < begin + group; ++i) rounded[i] = DecodeE4M3(EncodeE4M3(x[i] / scale)) * scale;
    }
    for (const TierFns* tier : HostTiers()) {
      const auto bound = BindFloatPanels(layer.weight, threads, *tier, "k");
      ASSERT_TRUE(bound.ok());
      const std::vector<float> out = RunForward(**bound, x, 5, threads);
      double error = 0, energy = 0;
      for (size_t m = 0; m < 5; ++m) {
        for (size_t n = 0; n < 40; ++n) {
          double sum = 0;
          for (size_t k = 0; k < 256; ++k) sum += layer.values[n * 256 + k] * rounded[m * 256 + k];
          error += std::pow(sum - out[m * 40 + n], 2);
          energy += sum * sum;
        }
      }
      EXPECT_LE(std::sqrt(error / energy), 1e-6) << tier->name;
    }
  }
  // A row of zeros has a scale that is not zero.
  layer.weight.floats.activations = {Activations::kDynamic, -1, 0};
  const auto bound = BindFloatPanels(layer.weight, threads, kGenericTier, "k");
  ASSERT_TRUE(bound.ok());
  for (const float v : RunForward(**bound, std::vector<float>(256, 0.0f), 1, threads)) EXPECT_EQ(v, 0.0f);
}

// Two layers with other static scales must not share a rounded value.
TEST(FloatPanels, StaticScalesDoNotShareTheCache) {
  ThreadPool threads(1);
  Layer layer = Make(Kind::kE4M3, 16, 64, 1, 64, false, false, 9);
  const std::vector<float> x = Inputs(64);
  std::vector<std::vector<float>> alone;
  std::vector<std::unique_ptr<BoundLinear>> bound;
  for (const float scale : {0.001f, 0.02f}) {
    layer.weight.floats.activations = {FloatActivations::Kind::kStatic, -1, scale};
    bound.push_back(BindFloatPanels(layer.weight, threads, kGenericTier, "k").value());
    alone.push_back(RunForward(*bound.back(), x, 1, threads));
  }
  EXPECT_NE(alone[0], alone[1]);
  ActivationCache cache;
  StepContext ctx;
  ctx.threads = &threads;
  ctx.activations = &cache;
  const StepValue value{ctx.NewValue(), x.data(), 1, 64, 64};
  for (size_t i = 0; i < 2; ++i) {
    std::vector<float> out(16);
    bound[i]->Forward(ctx, value, out.data(), 16);
    EXPECT_EQ(out, alone[i]);
  }
}

// A value that is not finite must show in its row, and only there: saturation must not hide it.
TEST(FloatPanels, NonFiniteInputsShow) {
  ThreadPool threads(1);
  Layer layer = Make(Kind::kE4M3, 20, 64, 1, 64, false, false, 4);
  for (const FloatActivations& scheme : {FloatActivations{}, FloatActivations{FloatActivations::Kind::kDynamic, -1, 0},
                                         FloatActivations{FloatActivations::Kind::kDynamic, 32, 0},
                                         FloatActivations{FloatActivations::Kind::kStatic, -1, 0.01f}}) {
    layer.weight.floats.activations = scheme;
    for (const float poison : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      std::vector<float> x = Inputs(3 * 64);
      x[64 + 5] = poison;
      for (const TierFns* tier : HostTiers()) {
        const auto bound = BindFloatPanels(layer.weight, threads, *tier, "k");
        ASSERT_TRUE(bound.ok());
        const std::vector<float> out = RunForward(**bound, x, 3, threads);
        for (size_t n = 0; n < 20; ++n) {
          EXPECT_TRUE(std::isfinite(out[n])) << tier->name;
          EXPECT_FALSE(std::isfinite(out[20 + n])) << tier->name << " hides " << poison;
          EXPECT_TRUE(std::isfinite(out[40 + n])) << tier->name;
        }
      }
    }
  }
}

TEST(FloatPanels, RefusesWhatItCannotRun) {
  ThreadPool threads(2);
  const auto reason = [&](const Layer& layer) {
    return GetErrorReason(BindFloatPanels(layer.weight, threads, kGenericTier, "k").status()).reason;
  };
  Layer good = Make(Kind::kE4M3, 20, 64, 1, 64, false, false, 1);
  EXPECT_EQ(reason(good), "");
  for (const uint8_t nan : {0x7f, 0xff}) {
    Layer bad = Make(Kind::kE4M3, 20, 64, 1, 64, false, false, 1);
    bad.codes[19 * 64 + 63] = nan;
    EXPECT_EQ(reason(bad), "NON_FINITE_WEIGHT");
  }
  for (const uint8_t code : {0x7c, 0xfc, 0x7e}) {
    Layer bad = Make(Kind::kE5M2, 20, 64, 1, 64, false, false, 1);
    bad.codes[5] = code;
    EXPECT_EQ(reason(bad), "NON_FINITE_WEIGHT");
  }
  Layer bad = Make(Kind::kE4M3, 20, 64, 1, 64, false, false, 1);
  bad.weight.floats.bytes = 20 * 64 - 1;
  EXPECT_EQ(reason(bad), "WEIGHT_NOT_SUPPORTED");
  for (const float scale : {std::numeric_limits<float>::infinity(), std::nanf(""), 3e38f}) {
    bad = Make(Kind::kE4M3, 20, 64, 1, 64, false, false, 1);
    bad.weight.floats.scale[7] = scale;
    EXPECT_EQ(reason(bad), "SCALE_OUT_OF_RANGE");
  }
  bad = Make(Kind::kE4M3, 20, 64, 1, 64, false, false, 1);
  bad.weight.floats.scale.pop_back();
  EXPECT_EQ(reason(bad), "WEIGHT_NOT_SUPPORTED");
  bad = Make(Kind::kTable16, 20, 64, 1, 64, true, false, 1);
  bad.weight.floats.table.pop_back();
  EXPECT_EQ(reason(bad), "WEIGHT_NOT_SUPPORTED");
  bad = Make(Kind::kE4M3, 20, 64, 1, 64, false, false, 1);
  bad.weight.floats.activations = {FloatActivations::Kind::kStatic, -1, 0.0f};
  EXPECT_EQ(reason(bad), "WEIGHT_NOT_SUPPORTED");
}

}  // namespace
}  // namespace sage::cpu
