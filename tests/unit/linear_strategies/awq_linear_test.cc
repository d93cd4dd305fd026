// awq_w4a16: stored words, grids, plans, scaled zeros of GEMV_FAST files, refusals, hostile tensors.
#include "engine/api/awq_linear.h"

#include <cmath>

#include "engine/base/status.h"
#include "engine/quant/integer_grid.h"
#include "engine/tensor/float_convert.h"
#include "gtest/gtest.h"
#include "tests/random_values.h"
#include "tests/unit/linear_strategies/recording_backend.h"

namespace sage {
namespace linear_strategies {
extern const LinearStrategyDef kAwqW4a16;
}
namespace {

using linear_strategies::kAwqW4a16;

TensorView ViewOf(const std::vector<float>& values, int64_t N, int64_t K) {
  return {DType::kF32, {N, K}, values.data(), values.size() * 4};
}

std::vector<float> RandomWeights(int64_t count, uint32_t seed) { return Normal(count, seed, 0.05f, 0.01f); }

LinearSpec SpecOf(int group_size) {
  LinearSpec spec;
  spec.strategy = "awq_w4a16";
  spec.group_size = group_size;
  return spec;
}

std::vector<float> AllRows(const StoredLinear& stored) {
  const auto full = Dequantize(stored);
  EXPECT_TRUE(full.ok()) << full.status();
  return {full->as<float>(), full->as<float>() + stored.N * stored.K};
}

TEST(AwqLinear, WordsFollowTheGemmOrder) {
  ThreadPool threads(1);
  // Output n has code n for every input and zero 15 - n: grids from a plan, so that the words are known.
  LayerPlan plan;
  for (int n = 0; n < 8; ++n) {
    plan.scale.push_back(0.5f);
    plan.zero.push_back(static_cast<float>(7 - n));
    for (int k = 0; k < 16; ++k) plan.codes.push_back(static_cast<int8_t>(n - 8));
  }
  const std::vector<float> weights(8 * 16, 0.0f);
  const auto stored = kAwqW4a16.quantize(ViewOf(weights, 8, 16), SpecOf(-1), plan, threads);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->tensors.at("qweight").shape, (Shape{16, 1}));
  for (int k = 0; k < 16; ++k) EXPECT_EQ(stored->tensors.at("qweight").as<uint32_t>()[k], 0x75316420u);
  EXPECT_EQ(stored->tensors.at("qzeros").as<uint32_t>()[0], 0x8ACE9BDFu);
  EXPECT_FALSE(stored->spec.symmetric);
  const std::vector<float> values = AllRows(*stored);
  for (size_t n = 0; n < 8; ++n) EXPECT_EQ(values[n * 16], 0.5f * (2 * static_cast<float>(n) - 15));
}

TEST(AwqLinear, DequantizeEqualsFakeQuantizeAndBindAgrees) {
  ThreadPool threads(2);
  const int64_t N = 136, K = 192;  // more than one tile of outputs
  const std::vector<float> weights = RandomWeights(N * K, 3);
  for (const int group_size : {-1, 1, 8, 12, 16, 24, 48, 64, 192}) {
    const auto stored = kAwqW4a16.quantize(ViewOf(weights, N, K), SpecOf(group_size), {}, threads);
    ASSERT_TRUE(stored.ok()) << stored.status();
    const std::vector<float> out = AllRows(*stored);
    RecordingBackend backend;
    ASSERT_TRUE(kAwqW4a16.bind(*stored, nullptr, backend, Priority::kLatency, threads).ok());
    const IntegerWeight& bound = backend.last_weight.integer;
    EXPECT_EQ(backend.last_query.strategy, "int4_w4a16");
    EXPECT_FALSE(backend.last_query.symmetric);
    const int64_t group = group_size == -1 ? K : group_size;
    for (int64_t i = 0; i < N * K / group; ++i) {
      const IntegerGrid grid = GridFromWeights(weights.data() + i * group, group, 4, false, DType::kF16, 0);
      ASSERT_EQ(bound.scale[static_cast<size_t>(i)], grid.scale);
      ASSERT_EQ(bound.offset[static_cast<size_t>(i)], -grid.scale * static_cast<float>(grid.zero));
      for (int64_t k = i * group; k < (i + 1) * group; ++k) {
        const int8_t code = CodeOf(weights[static_cast<size_t>(k)], grid, 4);
        ASSERT_EQ(out[static_cast<size_t>(k)], ValueOf(code, grid));
        ASSERT_EQ(bound.codes[static_cast<size_t>(k)], code);
      }
    }
    std::vector<float> part(static_cast<size_t>(7 * K));
    ASSERT_TRUE(kAwqW4a16.dequantize_rows(*stored, 126, 133, part.data()).ok());
    EXPECT_TRUE(std::equal(part.begin(), part.end(), out.begin() + 126 * K));
  }
}

TEST(AwqLinear, ScaledZerosAreAddedToTheProduct) {
  ThreadPool threads(1);
  const int64_t N = 16, K = 64, G = 2;
  const std::vector<float> weights = RandomWeights(N * K, 5);
  auto stored = kAwqW4a16.quantize(ViewOf(weights, N, K), SpecOf(32), {}, threads);
  ASSERT_TRUE(stored.ok());
  RecordingBackend whole;
  ASSERT_TRUE(kAwqW4a16.bind(*stored, nullptr, whole, Priority::kLatency, threads).ok());
  std::vector<uint16_t> scaled(static_cast<size_t>(G * N));
  for (int64_t i = 0; i < G * N; ++i) scaled[static_cast<size_t>(i)] = FloatToF16(-0.003f * static_cast<float>(i));
  StoredLinear fast = *stored;
  fast.tensors.erase("qzeros");
  fast.tensors["scaled_zeros"] = {DType::kF16, {G, N}, scaled.data(), scaled.size() * 2};
  const std::vector<float> values = AllRows(fast);
  RecordingBackend backend;
  ASSERT_TRUE(kAwqW4a16.bind(fast, nullptr, backend, Priority::kLatency, threads).ok());
  const IntegerWeight& bound = backend.last_weight.integer;
  EXPECT_EQ(bound.codes, whole.last_weight.integer.codes);
  for (size_t n = 0; n < 16; ++n) {
    for (size_t k = 0; k < 64; ++k) {
      const size_t g = k / 32;
      const float zero = F16ToFloat(scaled[g * 16 + n]), scale = bound.scale[n * 2 + g];
      const float product = scale * static_cast<float>(bound.codes[n * 64 + k] + 8);
      EXPECT_EQ(values[n * 64 + k], product + zero);
      EXPECT_NEAR(scale * bound.codes[n * 64 + k] + bound.offset[n * 2 + g], values[n * 64 + k], 1e-6);
    }
  }
  fast.tensors["qzeros"] = stored->tensors["qzeros"];
  EXPECT_FALSE(Dequantize(fast).ok());  // which of the two?
}

TEST(AwqLinear, RefusalsNameTheRule) {
  const auto reason = [](const LinearSpec& spec, int64_t N, int64_t K) {
    return GetErrorReason(kAwqW4a16.check(spec, N, K)).reason;
  };
  LinearSpec spec = SpecOf(128);
  EXPECT_EQ(reason(spec, 576, 576), "GROUP_SIZE_MUST_DIVIDE_K");
  EXPECT_EQ(reason(spec, 8, 1024), "");
  for (const int group : {8, 12, 24, 288, 576}) EXPECT_EQ(reason(SpecOf(group), 8, 576), "") << group;
  EXPECT_EQ(reason(spec, 12, 1024), "SIZE_NOT_SUPPORTED");
  spec.act_order = true;
  EXPECT_EQ(reason(spec, 8, 1024), "ACT_ORDER_NOT_SUPPORTED");
  spec.act_order = false;
  spec.scale_dtype = DType::kBF16;
  EXPECT_EQ(reason(spec, 8, 1024), "BAD_SCALE_DTYPE");
  ThreadPool threads(1);
  const std::vector<float> weights(8 * 32, 0.25f);
  LayerPlan plan;
  plan.g_idx.assign(32, 0);
  EXPECT_EQ(GetErrorReason(kAwqW4a16.quantize(ViewOf(weights, 8, 32), SpecOf(-1), plan, threads).status()).reason,
            "ACT_ORDER_NOT_SUPPORTED");
  plan.g_idx.clear();
  plan.scale.assign(8, 0.5f);
  LinearSpec asymmetric = SpecOf(-1);
  asymmetric.symmetric = false;  // zeros are missing
  EXPECT_EQ(GetErrorReason(kAwqW4a16.quantize(ViewOf(weights, 8, 32), asymmetric, plan, threads).status()).reason,
            "BAD_PLAN");
  LinearSpec symmetric = SpecOf(-1);
  symmetric.symmetric = true;  // none is needed: the stored zero is 8
  const auto stored = kAwqW4a16.quantize(ViewOf(weights, 8, 32), symmetric, plan, threads);
  ASSERT_TRUE(stored.ok()) << stored.status();
  for (const float value : AllRows(*stored)) EXPECT_EQ(value, 0.0f);  // 0.25 / 0.5, half to even
}

TEST(AwqLinear, HostileStoredTensorsAreRefused) {
  ThreadPool threads(1);
  const std::vector<float> weights = RandomWeights(32 * 64, 9);
  const auto good = kAwqW4a16.quantize(ViewOf(weights, 32, 64), SpecOf(16), {}, threads);
  ASSERT_TRUE(good.ok());
  std::vector<float> out(32 * 64);
  RecordingBackend backend;
  const auto refused = [&](const StoredLinear& bad) {
    return !kAwqW4a16.dequantize_rows(bad, 0, 1, out.data()).ok() &&
           !kAwqW4a16.bind(bad, nullptr, backend, Priority::kLatency, threads).ok();
  };
  for (const auto& [name, view] : good->tensors) {
    StoredLinear bad = *good;
    bad.tensors.erase(name);
    EXPECT_TRUE(refused(bad)) << name;
    bad = *good;
    bad.tensors[name].bytes -= 1;
    EXPECT_TRUE(refused(bad)) << name;
    bad = *good;
    bad.tensors[name].dtype = DType::kU8;
    EXPECT_TRUE(refused(bad)) << name;
    bad = *good;
    bad.tensors[name].shape[0] += 1;
    EXPECT_TRUE(refused(bad)) << name;
  }
  StoredLinear bad = *good;
  bad.N = int64_t{1} << 40;
  EXPECT_TRUE(refused(bad));
  bad = *good;
  bad.N = 33;
  EXPECT_TRUE(refused(bad));
  bad = *good;
  bad.spec.group_size = 0;
  EXPECT_TRUE(refused(bad));
}

TEST(AwqLinear, ConfigHasTheKeysOfTheTool) {
  EXPECT_EQ(DumpJson(AwqQuantizationConfig(SpecOf(64), {})),
            R"({"bits":4,"group_size":64,"modules_to_not_convert":null,"quant_method":"awq","version":"gemm",)"
            R"("zero_point":true})");
  const Json some = AwqQuantizationConfig(SpecOf(64), {"model.layers.0.mlp.down_proj"});
  EXPECT_EQ(DumpJson(some["modules_to_not_convert"]), R"(["model.layers.0.mlp.down_proj","lm_head"])");
}

}  // namespace
}  // namespace sage
