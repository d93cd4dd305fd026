// gptq_w2a16 .. gptq_w8a16: stored words, grids, plans with and without act-order, refusals, hostile tensors.
#include "engine/api/gptq_linear.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <random>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/quant/integer_grid.h"
#include "engine/tensor/float_convert.h"
#include "engine/tensor/safetensors_file.h"
#include "gtest/gtest.h"
#include "tests/random_values.h"
#include "tests/unit/linear_strategies/recording_backend.h"

namespace sage {
namespace linear_strategies {
extern const LinearStrategyDef kGptqW2a16;
extern const LinearStrategyDef kGptqW3a16;
extern const LinearStrategyDef kGptqW4a16;
extern const LinearStrategyDef kGptqW8a16;
}  // namespace linear_strategies
namespace {

using linear_strategies::kGptqW2a16;
using linear_strategies::kGptqW3a16;
using linear_strategies::kGptqW4a16;
using linear_strategies::kGptqW8a16;
constexpr const LinearStrategyDef* kAll[] = {&kGptqW2a16, &kGptqW3a16, &kGptqW4a16, &kGptqW8a16};

TensorView ViewOf(const std::vector<float>& values, int64_t N, int64_t K) {
  return {DType::kF32, {N, K}, values.data(), values.size() * 4};
}

std::vector<float> RandomWeights(int64_t count, uint32_t seed) { return Normal(count, seed, 0.05f, 0.01f); }

LinearSpec SpecOf(const LinearStrategyDef& def, int group_size, bool symmetric) {
  LinearSpec spec;
  spec.strategy = std::string(def.name);
  spec.group_size = group_size;
  spec.symmetric = symmetric;
  return spec;
}

std::vector<float> AllRows(const StoredLinear& stored) {
  const auto full = Dequantize(stored);
  EXPECT_TRUE(full.ok()) << full.status();
  return {full->as<float>(), full->as<float>() + stored.N * stored.K};
}

// reference/quantization.md 1.1: eight weights, as often as the layout's sizes need.
TEST(GptqLinear, WorkedVector) {
  const float worked[] = {-0.3f, 0.1f, 0.7f, -1.1f, 0.4f, 0.0f, 0.9f, -0.6f};
  std::vector<float> weights;
  for (int i = 0; i < 32 * 4; ++i) weights.insert(weights.end(), worked, worked + 8);
  ThreadPool threads(1);
  auto stored = kGptqW4a16.quantize(ViewOf(weights, 32, 32), SpecOf(kGptqW4a16, -1, true), {}, threads);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->spec.scale_dtype, DType::kF16);
  const auto word = [&](const char* name, int i) { return stored->tensors.at(name).as<uint32_t>()[i]; };
  for (int i = 0; i < 4 * 32; ++i) ASSERT_EQ(word("qweight", i), 0x4E8B0D96u);
  for (int i = 0; i < 4; ++i) ASSERT_EQ(word("qzeros", i), 0x77777777u);
  EXPECT_EQ(stored->tensors.at("qzeros").shape, (Shape{1, 4}));
  EXPECT_EQ(F16ToFloat(stored->tensors.at("scales").as<uint16_t>()[7]), F16ToFloat(FloatToF16(0.146667f)));
  EXPECT_EQ(stored->tensors.at("g_idx").as<int32_t>()[31], 0);

  stored = kGptqW4a16.quantize(ViewOf(weights, 32, 32), SpecOf(kGptqW4a16, -1, false), {}, threads);
  ASSERT_TRUE(stored.ok());
  // The reference's codes are 6 9 13 0 11 8 15 4 with the unrounded scale; the stored f16 scale moves -0.6, which lies
  // halfway between two codes, to 3. The zero of 8 is stored as it is (v2).
  for (int i = 0; i < 4 * 32; ++i) ASSERT_EQ(word("qweight", i), 0x3F8B0D96u);
  for (int i = 0; i < 4; ++i) ASSERT_EQ(word("qzeros", i), 0x88888888u);
  EXPECT_EQ(stored->tensors.at("scales").as<uint16_t>()[0], FloatToF16(2.0f / 15.0f));
}

TEST(GptqLinear, DequantizeEqualsFakeQuantizeAndBindAgrees) {
  ThreadPool threads(2);
  const int64_t N = 64, K = 192;
  const std::vector<float> weights = RandomWeights(N * K, 3);
  for (const LinearStrategyDef* def : kAll) {
    const int bits = def->weight_bits;
    for (const int group_size : {-1, 1, 8, 12, 16, 24, 48, 96, 192}) {
      for (const bool symmetric : {true, false}) {
        SCOPED_TRACE(testing::Message() << def->name << " group " << group_size << (symmetric ? " sym" : " asym"));
        const auto stored = def->quantize(ViewOf(weights, N, K), SpecOf(*def, group_size, symmetric), {}, threads);
        ASSERT_TRUE(stored.ok()) << stored.status();
        const std::vector<float> out = AllRows(*stored);
        RecordingBackend backend;
        ASSERT_TRUE(def->bind(*stored, nullptr, backend, Priority::kLatency, threads).ok());
        const IntegerWeight& bound = backend.last_weight.integer;
        const int64_t group = group_size == -1 ? K : group_size, G = K / group;
        EXPECT_EQ(backend.last_query.strategy, bits <= 4 ? "int4_w4a16" : "int8_w8a16");
        EXPECT_EQ(backend.last_query.symmetric, symmetric);
        EXPECT_EQ(backend.last_query.group_size, G == 1 ? -1 : group);
        EXPECT_EQ(bound.bits, bits);
        EXPECT_TRUE(bound.g_idx.empty());
        for (int64_t i = 0; i < N * G; ++i) {
          const IntegerGrid grid = GridFromWeights(weights.data() + i * group, group, bits, symmetric, DType::kF16, 0);
          ASSERT_EQ(bound.scale[static_cast<size_t>(i)], grid.scale);
          if (!symmetric) {
            ASSERT_EQ(bound.offset[static_cast<size_t>(i)], -grid.scale * static_cast<float>(grid.zero));
          }
          for (int64_t k = i * group; k < (i + 1) * group; ++k) {
            const int8_t code = CodeOf(weights[static_cast<size_t>(k)], grid, bits);
            ASSERT_EQ(out[static_cast<size_t>(k)], ValueOf(code, grid));
            ASSERT_EQ(bound.codes[static_cast<size_t>(k)], code);
          }
        }
        // Any range of rows is a part of the whole.
        std::vector<float> part(static_cast<size_t>(5 * K));
        ASSERT_TRUE(def->dequantize_rows(*stored, 19, 24, part.data()).ok());
        EXPECT_TRUE(std::equal(part.begin(), part.end(), out.begin() + 19 * K));
      }
    }
  }
}

TEST(GptqLinear, ThreadCountDoesNotChangeBytes) {
  const std::vector<float> weights = RandomWeights(96 * 128, 5);
  std::vector<std::string> images;
  for (const int count : {1, 2, 5}) {
    ThreadPool threads(count);
    LinearSpec spec = SpecOf(kGptqW3a16, 32, false);
    spec.clip_ratio = 0.1;
    const auto stored = kGptqW3a16.quantize(ViewOf(weights, 96, 128), spec, {}, threads);
    ASSERT_TRUE(stored.ok());
    std::string image;
    for (const auto& [name, view] : stored->tensors) image.append(view.as<char>(), view.bytes);
    images.push_back(image);
  }
  EXPECT_EQ(images[0], images[1]);
  EXPECT_EQ(images[0], images[2]);
}

// A plan as a solver with act-order makes it.
LayerPlan OrderedPlan(int64_t N, int64_t K, int64_t G, int bits, uint32_t seed) {
  std::mt19937 random(seed);
  LayerPlan plan;
  for (int64_t i = 0; i < N * G; ++i) {
    plan.scale.push_back(0.01f + 0.001f * static_cast<float>(random() % 100));
    plan.zero.push_back(static_cast<float>(static_cast<int>(random() % (1u << bits)) - (1 << (bits - 1))));
  }
  for (int64_t i = 0; i < N * K; ++i) {
    plan.codes.push_back(static_cast<int8_t>(static_cast<int>(random() % (1u << bits)) - (1 << (bits - 1))));
  }
  for (int64_t k = 0; k < K; ++k) plan.g_idx.push_back(static_cast<int32_t>((k * 37 + 5) % K * G / K));
  return plan;
}

TEST(GptqLinear, ActOrderPlanIsStoredAndBound) {
  ThreadPool threads(2);
  const int64_t N = 32, K = 128, G = 4;
  const std::vector<float> weights = RandomWeights(N * K, 9);
  for (const LinearStrategyDef* def : kAll) {
    LinearSpec spec = SpecOf(*def, 32, false);
    spec.act_order = true;
    const LayerPlan plan = OrderedPlan(N, K, G, def->weight_bits, 4);
    const auto stored = def->quantize(ViewOf(weights, N, K), spec, plan, threads);
    ASSERT_TRUE(stored.ok()) << stored.status();
    const std::vector<float> out = AllRows(*stored);
    for (size_t n = 0; n < static_cast<size_t>(N); ++n) {
      for (size_t k = 0; k < static_cast<size_t>(K); ++k) {
        const size_t at = n * G + static_cast<size_t>(plan.g_idx[k]);
        const float scale = RoundToDType(plan.scale[at], DType::kF16);
        ASSERT_EQ(out[n * K + k], (plan.codes[n * K + k] - plan.zero[at]) * scale);
      }
    }
    RecordingBackend backend;
    ASSERT_TRUE(def->bind(*stored, nullptr, backend, Priority::kLatency, threads).ok());
    EXPECT_EQ(backend.last_weight.integer.g_idx, plan.g_idx);
    // Without codes the plan's grids decide.
    LayerPlan grids = plan;
    grids.codes.clear();
    const auto rounded = def->quantize(ViewOf(weights, N, K), spec, grids, threads);
    ASSERT_TRUE(rounded.ok()) << rounded.status();
    const std::vector<float> values = AllRows(*rounded);
    for (size_t k = 0; k < static_cast<size_t>(K); ++k) {
      IntegerGrid grid;
      grid.scale = RoundToDType(plan.scale[static_cast<size_t>(plan.g_idx[k])], DType::kF16);
      grid.zero = static_cast<int32_t>(plan.zero[static_cast<size_t>(plan.g_idx[k])]);
      ASSERT_EQ(values[k], ValueOf(CodeOf(weights[k], grid, def->weight_bits), grid));
    }
  }
}

TEST(GptqLinear, BadPlansAreRefused) {
  ThreadPool threads(1);
  const std::vector<float> weights = RandomWeights(32 * 64, 9);
  LinearSpec spec = SpecOf(kGptqW4a16, 32, false);
  const auto reason = [&](const LayerPlan& plan) {
    return GetErrorReason(kGptqW4a16.quantize(ViewOf(weights, 32, 64), spec, plan, threads).status()).reason;
  };
  const LayerPlan good = OrderedPlan(32, 64, 2, 4, 1);
  EXPECT_EQ(reason(good), "BAD_PLAN");  // an order although act_order is false
  spec.act_order = true;
  EXPECT_EQ(reason(good), "");
  EXPECT_EQ(reason({}), "ACT_ORDER_NEEDS_PLAN");
  LayerPlan bad = good;
  bad.g_idx[3] = 2;
  EXPECT_EQ(reason(bad), "BAD_PLAN");
  bad = good;
  bad.g_idx.pop_back();
  EXPECT_EQ(reason(bad), "BAD_PLAN");
  bad = good;
  bad.codes[3] = 8;
  EXPECT_EQ(reason(bad), "BAD_PLAN");
  bad = good;
  bad.zero[0] = 0.5f;
  EXPECT_EQ(reason(bad), "BAD_PLAN");
  bad = good;
  bad.scale[2] = 0.0f;
  EXPECT_EQ(reason(bad), "BAD_PLAN");
  bad = good;
  bad.scale.pop_back();
  EXPECT_EQ(reason(bad), "BAD_PLAN");
  bad = good;
  bad.scale[0] = 70000.0f;  // no f16
  EXPECT_EQ(reason(bad), "SCALE_OUT_OF_RANGE");
}

TEST(GptqLinear, RefusalsNameTheRule) {
  const auto reason = [](const LinearStrategyDef& def, const LinearSpec& spec, int64_t N, int64_t K) {
    return GetErrorReason(def.check(spec, N, K)).reason;
  };
  LinearSpec spec = SpecOf(kGptqW4a16, 128, true);
  EXPECT_EQ(reason(kGptqW4a16, spec, 576, 576), "GROUP_SIZE_MUST_DIVIDE_K");
  EXPECT_EQ(reason(kGptqW4a16, spec, 576, 1024), "");
  for (const int group : {8, 12, 24, 288, 576}) {
    for (const LinearStrategyDef* def : kAll) EXPECT_EQ(reason(*def, SpecOf(*def, group, true), 64, 576), "") << group;
  }
  EXPECT_EQ(reason(kGptqW4a16, spec, 40, 1024), "SIZE_NOT_SUPPORTED");
  spec.group_size = -1;
  EXPECT_EQ(reason(kGptqW4a16, spec, 64, 72), "SIZE_NOT_SUPPORTED");
  spec.clip_ratio = 1.0;
  EXPECT_EQ(reason(kGptqW4a16, spec, 64, 64), "BAD_CLIP_RATIO");
  spec.clip_ratio = 0;
  spec.scale_dtype = DType::kBF16;
  EXPECT_EQ(reason(kGptqW4a16, spec, 64, 64), "BAD_SCALE_DTYPE");
  ThreadPool threads(2);
  std::vector<float> weights(32 * 32, 1e7f);
  spec.scale_dtype = DType::kF16;
  EXPECT_EQ(GetErrorReason(kGptqW4a16.quantize(ViewOf(weights, 32, 32), spec, {}, threads).status()).reason,
            "SCALE_OUT_OF_RANGE");
  weights[4] = std::nanf("");
  EXPECT_EQ(GetErrorReason(kGptqW4a16.quantize(ViewOf(weights, 32, 32), spec, {}, threads).status()).reason,
            "NON_FINITE_WEIGHT");
}

TEST(GptqLinear, HostileStoredTensorsAreRefused) {
  ThreadPool threads(1);
  const std::vector<float> weights = RandomWeights(32 * 64, 9);
  for (const LinearStrategyDef* def : kAll) {
    const auto good = def->quantize(ViewOf(weights, 32, 64), SpecOf(*def, 16, false), {}, threads);
    ASSERT_TRUE(good.ok());
    std::vector<float> out(32 * 64);
    RecordingBackend backend;
    const auto refused = [&](const StoredLinear& bad) {
      return !def->dequantize_rows(bad, 0, 1, out.data()).ok() &&
             !def->bind(bad, nullptr, backend, Priority::kLatency, threads).ok();
    };
    for (const auto& [name, view] : good->tensors) {
      StoredLinear bad = *good;
      if (name != "g_idx") {  // files without it have consecutive groups
        bad.tensors.erase(name);
        EXPECT_TRUE(refused(bad)) << name;
      }
      bad = *good;
      bad.tensors[name].bytes -= 1;
      EXPECT_TRUE(refused(bad)) << name;
      bad = *good;
      bad.tensors[name].dtype = DType::kU8;
      EXPECT_TRUE(refused(bad)) << name;
      bad = *good;
      bad.tensors[name].shape.back() += 1;
      EXPECT_TRUE(refused(bad)) << name;
    }
    StoredLinear bad = *good;
    bad.N = int64_t{1} << 40;
    EXPECT_TRUE(refused(bad));
    bad = *good;
    bad.K = 33;
    EXPECT_TRUE(refused(bad));
    bad = *good;
    bad.spec.group_size = 0;
    EXPECT_TRUE(refused(bad));
    for (const int32_t wrong : {-1, 4, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()}) {
      std::vector<int32_t> g_idx(64, 0);
      g_idx[63] = wrong;
      bad = *good;
      bad.tensors["g_idx"] = {DType::kI32, {64}, g_idx.data(), 256};
      EXPECT_TRUE(refused(bad)) << wrong;
    }
    EXPECT_FALSE(def->dequantize_rows(*good, 31, 33, out.data()).ok());
    EXPECT_FALSE(def->dequantize_rows(*good, -1, 3, out.data()).ok());
    StoredLinear without = *good;
    without.tensors.erase("g_idx");
    EXPECT_EQ(AllRows(without), AllRows(*good));
  }
}

TEST(GptqLinear, ConfigHasTheKeysOfTheTool) {
  LinearSpec spec = SpecOf(kGptqW4a16, 128, true);
  Json config = GptqQuantizationConfig(spec, 4, {});
  EXPECT_EQ(config["bits"], 4);
  EXPECT_EQ(config["group_size"], 128);
  EXPECT_EQ(config["desc_act"], false);
  EXPECT_EQ(config["sym"], true);
  EXPECT_EQ(config["quant_method"], "gptq");
  EXPECT_EQ(config["checkpoint_format"], "gptq");
  EXPECT_EQ(config["pack_dtype"], "int32");
  EXPECT_EQ(config.count("dynamic"), 0u);
  spec.symmetric = false;
  spec.act_order = true;
  config = GptqQuantizationConfig(spec, 2, {"lm_head", "model.layers.0.mlp.down_proj"});
  EXPECT_EQ(config["checkpoint_format"], "gptq_v2");
  EXPECT_EQ(config["desc_act"], true);
  EXPECT_EQ(DumpJson(config["dynamic"]), R"({"-:^model\\.layers\\.0\\.mlp\\.down_proj$":{}})");
}

// One layer that another project ships as a test vector: symmetric, 4 bits, groups of 128.
TEST(GptqLinear, ForeignLayerIsOnItsGrid) {
  const std::string path = std::string(SAGE_SOURCE_DIR) + "/../shared/data/checkpoints/gptq_small.safetensors";
  if (!FileExists(path)) GTEST_SKIP() << "shared test data is absent: gptq_small.safetensors";
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  StoredLinear stored;
  stored.spec = SpecOf(kGptqW4a16, 128, true);
  stored.N = stored.K = 256;
  for (const char* name : {"qweight", "qzeros", "scales", "g_idx"}) stored.tensors[name] = (*file)->tensors().at(name);
  stored.bias = (*file)->tensors().at("bias");
  const std::vector<float> values = AllRows(stored);
  const auto& qweight = stored.tensors["qweight"];
  for (size_t n = 0; n < 256; n += 37) {
    for (size_t k = 0; k < 256; k += 11) {
      uint32_t word;
      std::memcpy(&word, qweight.as<uint8_t>() + ((k / 8) * 256 + n) * 4, 4);
      uint16_t scale;
      std::memcpy(&scale, stored.tensors["scales"].as<uint8_t>() + ((k / 128) * 256 + n) * 2, 2);
      const int code = static_cast<int>((word >> (4 * (k % 8))) & 15);
      EXPECT_EQ(values[n * 256 + k], F16ToFloat(scale) * static_cast<float>(code - 8));
    }
  }
  RecordingBackend backend;
  ThreadPool threads(1);
  ASSERT_TRUE(kGptqW4a16.bind(stored, nullptr, backend, Priority::kLatency, threads).ok());
  EXPECT_TRUE(backend.last_query.symmetric);
  EXPECT_EQ(backend.last_weight.bias.size(), 256u);
}

}  // namespace
}  // namespace sage
