// int4_w4a16 and int8_w8a16: stored bytes, refusals, plans, thread independence, and real compressed-tensors files.
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>

#include "engine/api/linear_strategy.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/quant/integer_grid.h"
#include "engine/tensor/float_convert.h"
#include "gtest/gtest.h"
#include "tests/random_values.h"
#include "tests/unit/linear_strategies/recording_backend.h"

namespace sage {
namespace linear_strategies {
extern const LinearStrategyDef kInt4W4a16;
extern const LinearStrategyDef kInt4W4a8;
extern const LinearStrategyDef kInt8W8a16;
extern const LinearStrategyDef kInt8W8a8;
}  // namespace linear_strategies
namespace {

using linear_strategies::kInt4W4a16;
using linear_strategies::kInt4W4a8;
using linear_strategies::kInt8W8a16;
using linear_strategies::kInt8W8a8;

TensorView ViewOf(const std::vector<float>& values, int64_t N, int64_t K) {
  return {DType::kF32, {N, K}, values.data(), values.size() * 4};
}

std::vector<float> RandomWeights(int64_t count, uint32_t seed) { return Normal(count, seed, 0.05f, 0.01f); }

TEST(PackedLinear, WorkedVectorBytes) {
  std::vector<float> weights = {-0.3f, 0.1f, 0.7f, -1.1f, 0.4f, 0.0f, 0.9f, -0.6f};
  ThreadPool threads(1);
  LinearSpec spec;
  spec.scale_dtype = DType::kF16;
  const auto stored = kInt4W4a16.quantize(ViewOf(weights, 1, 8), spec, {}, threads);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->tensors.at("weight_packed").shape, (Shape{1, 1}));
  EXPECT_EQ(stored->tensors.at("weight_packed").as<uint32_t>()[0], 0x4E8B0D96u);
  EXPECT_EQ(stored->tensors.at("weight_scale").as<uint16_t>()[0], FloatToF16(1.1f / 7.5f));
  EXPECT_EQ(stored->tensors.at("weight_shape").as<int64_t>()[1], 8);
  EXPECT_EQ(stored->tensors.count("weight_zero_point"), 0u);
}

TEST(PackedLinear, DequantizeEqualsFakeQuantizeAndBindAgrees) {
  ThreadPool threads(2);
  const int64_t N = 13, K = 96;
  const std::vector<float> weights = RandomWeights(N * K, 3);
  for (const LinearStrategyDef* def : {&kInt4W4a16, &kInt8W8a16}) {
    for (const int group_size : {-1, 1, 2, 3, 8, 12, 16, 24, 32, 48, 96}) {
      for (const bool symmetric : {true, false}) {
        for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
          LinearSpec spec{std::string(def->name), group_size, symmetric, false, 0, dtype};
          const auto stored = def->quantize(ViewOf(weights, N, K), spec, {}, threads);
          ASSERT_TRUE(stored.ok()) << stored.status();
          std::vector<float> out(weights.size());
          ASSERT_TRUE(def->dequantize_rows(*stored, 0, N, out.data()).ok());
          RecordingBackend backend;
          ASSERT_TRUE(def->bind(*stored, nullptr, backend, Priority::kLatency, threads).ok());
          const IntegerWeight& bound = backend.last_weight.integer;
          EXPECT_EQ(backend.last_query.symmetric, symmetric);
          const int64_t group = group_size == -1 ? K : group_size, G = K / group;
          EXPECT_EQ(bound.group_size, group);
          for (int64_t i = 0; i < N * G; ++i) {
            const float* from = weights.data() + i * group;
            const IntegerGrid grid = GridFromWeights(from, group, def->weight_bits, symmetric, dtype, 0);
            for (int64_t k = 0; k < group; ++k) {
              const int8_t code = CodeOf(from[k], grid, def->weight_bits);
              ASSERT_EQ(out[static_cast<size_t>(i * group + k)], ValueOf(code, grid));
              ASSERT_EQ(bound.codes[static_cast<size_t>(i * group + k)], code);
              // Half a step each for the code, the zero point and the scale's own rounding (bf16: 2^-9 of 255 steps;
              // f16 has steps of 2^-24 where one small weight is a group of its own).
              const float coarse = dtype == DType::kF16 ? 255 * 0x1p-25f : 0.0f;
              ASSERT_LE(std::fabs(from[k] - ValueOf(code, grid)), grid.scale * 1.51f + coarse);
            }
            ASSERT_EQ(bound.scale[static_cast<size_t>(i)], grid.scale);
            if (!symmetric) {
              ASSERT_EQ(bound.offset[static_cast<size_t>(i)], -grid.scale * static_cast<float>(grid.zero));
            }
          }
        }
      }
    }
  }
}

TEST(PackedLinear, ThreadCountDoesNotChangeBytes) {
  const int64_t N = 77, K = 128;
  const std::vector<float> weights = RandomWeights(N * K, 5);
  LinearSpec spec{"int4_w4a16", 32, false, false, 0.1, DType::kBF16};
  std::vector<std::string> images;
  for (const int count : {1, 2, 5}) {
    ThreadPool threads(count);
    const auto stored = kInt4W4a16.quantize(ViewOf(weights, N, K), spec, {}, threads);
    ASSERT_TRUE(stored.ok());
    std::string image;
    for (const auto& [name, view] : stored->tensors) image.append(view.as<char>(), view.bytes);
    images.push_back(image);
  }
  EXPECT_EQ(images[0], images[1]);
  EXPECT_EQ(images[0], images[2]);
}

TEST(PackedLinear, GroupSizeRefusal) {
  LinearSpec spec{"int4_w4a16", 128, true, false, 0, DType::kF32};
  const absl::Status status = kInt4W4a16.check(spec, 576, 576);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  const std::string sizes = "576, 288, 192, 144, 96, 72, 64, 48, 36, 32, 24, 18, 16, 12, 9, 8";
  EXPECT_EQ(std::string(status.message()),
            "int4_w4a16: group_size must divide K, got K=576, group_size=128; sizes that do: " + sizes);
  const ErrorReason reason = GetErrorReason(status);
  EXPECT_EQ(reason.reason, "GROUP_SIZE_MUST_DIVIDE_K");
  EXPECT_EQ(reason.metadata.at("K"), "576");
  EXPECT_EQ(reason.metadata.at("group_size"), "128");
  EXPECT_EQ(reason.metadata.at("allowed"), sizes);
  for (const int bad : {0, -2, 7, 100, 577, 1152}) {
    spec.group_size = bad;
    EXPECT_EQ(GetErrorReason(kInt4W4a16.check(spec, 1, 576)).reason, "GROUP_SIZE_MUST_DIVIDE_K") << bad;
  }
  for (const int good : {-1, 1, 2, 8, 9, 24, 288, 576}) {
    for (const LinearStrategyDef* def : {&kInt4W4a16, &kInt4W4a8, &kInt8W8a16, &kInt8W8a8}) {
      spec.group_size = good;
      EXPECT_TRUE(def->check(spec, 1, 576).ok()) << def->name << def->check(spec, 1, 576);
    }
  }
}

// Sizes under 8 cost more than they save: named only where nothing else divides.
TEST(PackedLinear, SizesToNameInErrors) {
  EXPECT_EQ(GroupSizesFor(4096), (std::vector<int>{4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8}));
  EXPECT_EQ(GroupSizesFor(100), (std::vector<int>{100, 50, 25, 20, 10}));
  EXPECT_EQ(GroupSizesFor(4), (std::vector<int>{4, 2}));
  EXPECT_EQ(GroupSizesFor(17), (std::vector<int>{17}));
  EXPECT_EQ(GroupSizesFor(1), std::vector<int>{});
  EXPECT_EQ(GroupSizesFor(0), std::vector<int>{});
  EXPECT_EQ(GroupSizesFor((int64_t{1} << 31) - 1), (std::vector<int>{(1u << 31) - 1}));  // a prime
}

TEST(PackedLinear, OtherRefusals) {
  ThreadPool threads(3);
  LinearSpec spec{"int8_w8a16", 16, true, false, 0, DType::kF16};
  spec.act_order = true;
  EXPECT_EQ(GetErrorReason(kInt8W8a16.check(spec, 4, 32)).reason, "ACT_ORDER_NOT_SUPPORTED");
  spec.act_order = false;
  for (const double clip : {1.0, -0.1, std::nan("")}) {
    spec.clip_ratio = clip;
    EXPECT_EQ(GetErrorReason(kInt8W8a16.check(spec, 4, 32)).reason, "BAD_CLIP_RATIO");
  }
  spec.clip_ratio = 0;
  std::vector<float> weights = RandomWeights(64 * 32, 1);
  weights[50 * 32 + 4] = std::nanf("");
  weights[7 * 32 + 9] = std::numeric_limits<float>::infinity();
  const absl::Status bad = kInt8W8a16.quantize(ViewOf(weights, 64, 32), spec, {}, threads).status();
  EXPECT_EQ(std::string(bad.message()), "int8_w8a16: weights must be finite, got inf at row 7, column 9");
  EXPECT_EQ(GetErrorReason(bad).reason, "NON_FINITE_WEIGHT");
  weights = std::vector<float>(64 * 32, 1e30f);
  EXPECT_EQ(GetErrorReason(kInt8W8a16.quantize(ViewOf(weights, 64, 32), spec, {}, threads).status()).reason,
            "SCALE_OUT_OF_RANGE");
}

TEST(PackedLinear, PlanIsHonouredOrRefused) {
  ThreadPool threads(1);
  const std::vector<float> weights = RandomWeights(2 * 32, 9);
  LinearSpec spec{"int4_w4a16", 16, false, false, 0, DType::kF32};
  LayerPlan plan;
  plan.scale = {0.5f, 0.25f, 1.0f, 2.0f};
  plan.zero = {1, -8, 7, 0};
  for (int i = 0; i < 64; ++i) plan.codes.push_back(static_cast<int8_t>(i % 16 - 8));
  const auto stored = kInt4W4a16.quantize(ViewOf(weights, 2, 32), spec, plan, threads);
  ASSERT_TRUE(stored.ok()) << stored.status();
  float out[64];
  ASSERT_TRUE(kInt4W4a16.dequantize_rows(*stored, 0, 2, out).ok());
  for (size_t i = 0; i < 64; ++i) {
    EXPECT_EQ(out[i], (static_cast<float>(plan.codes[i]) - plan.zero[i / 16]) * plan.scale[i / 16]);
  }
  const auto reason = [&](const LayerPlan& bad) {
    return GetErrorReason(kInt4W4a16.quantize(ViewOf(weights, 2, 32), spec, bad, threads).status()).reason;
  };
  LayerPlan bad = plan;
  bad.codes[3] = 8;
  EXPECT_EQ(reason(bad), "BAD_PLAN");
  bad = plan;
  bad.zero[0] = 0.5f;
  EXPECT_EQ(reason(bad), "BAD_PLAN");
  bad = plan;
  bad.scale[2] = 0.0f;
  EXPECT_EQ(reason(bad), "BAD_PLAN");
  bad = plan;
  bad.scale.pop_back();
  EXPECT_EQ(reason(bad), "BAD_PLAN");
  bad = plan;
  bad.g_idx = {0};
  EXPECT_EQ(reason(bad), "ACT_ORDER_NOT_SUPPORTED");
}

TEST(PackedLinear, HostileStoredTensorsAreRefused) {
  ThreadPool threads(1);
  const std::vector<float> weights = RandomWeights(8 * 32, 9);
  LinearSpec spec{"int4_w4a16", 16, false, false, 0, DType::kF32};
  const auto good = kInt4W4a16.quantize(ViewOf(weights, 8, 32), spec, {}, threads);
  ASSERT_TRUE(good.ok());
  std::vector<float> out(8 * 32);
  RecordingBackend backend;
  const auto refused = [&](const StoredLinear& bad) {
    return !kInt4W4a16.dequantize_rows(bad, 0, 1, out.data()).ok() &&
           !kInt4W4a16.bind(bad, nullptr, backend, Priority::kLatency, threads).ok();
  };
  for (const auto& [name, view] : good->tensors) {
    if (name == "weight_shape") continue;
    StoredLinear bad = *good;
    bad.tensors.erase(name);
    EXPECT_TRUE(refused(bad)) << name;
    bad = *good;
    bad.tensors[name].bytes -= 1;
    EXPECT_TRUE(refused(bad)) << name;
    bad = *good;
    bad.tensors[name].dtype = DType::kU8;
    EXPECT_TRUE(refused(bad)) << name;
  }
  StoredLinear bad = *good;
  bad.N = int64_t{1} << 40;
  EXPECT_TRUE(refused(bad));
  bad = *good;
  bad.spec.group_size = 0;
  EXPECT_TRUE(refused(bad));
  const std::vector<int32_t> g_idx(32, 2);
  bad = *good;
  bad.tensors["weight_g_idx"] = {DType::kI32, {32}, g_idx.data(), 128};
  EXPECT_TRUE(refused(bad));
  EXPECT_FALSE(kInt4W4a16.dequantize_rows(*good, 7, 9, out.data()).ok());
}

// The least that reading a trusted safetensors file takes.
struct FileTensors {
  std::string bytes;
  Json header;
  size_t begin = 0;

  explicit FileTensors(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    std::stringstream text;
    text << in.rdbuf();
    bytes = text.str();
    uint64_t size = 0;
    std::memcpy(&size, bytes.data(), 8);
    begin = 8 + size;
    header = Json::parse(bytes.substr(8, size));
  }
  TensorView view(const std::string& name) const {
    const Json& entry = header.at(name);
    const size_t from = entry["data_offsets"][0], to = entry["data_offsets"][1];
    return {*ParseDType(entry["dtype"].get<std::string>()), entry["shape"].get<Shape>(), bytes.data() + begin + from,
            to - from};
  }
};

void CheckFolder(const std::string& name, const LinearStrategyDef& def, int group_size, bool symmetric) {
  const std::string folder = std::string(SAGE_SOURCE_DIR) + "/../shared/data/checkpoints/" + name;
  if (!FileExists(folder + "/model.safetensors")) GTEST_SKIP() << "shared test data is absent: " << name;
  const FileTensors model(folder + "/model.safetensors");
  const Json expected = Json::parse(std::ifstream(folder + "/expected.json"))["weights"];
  int seen = 0;
  for (const auto& [weight_name, entry] : expected.items()) {
    if (!model.header.contains(weight_name + "_packed")) continue;
    ++seen;
    StoredLinear stored;
    stored.spec = {std::string(def.name), group_size, symmetric, false, 0, DType::kBF16};
    stored.N = entry["shape"][0];
    stored.K = entry["shape"][1];
    for (const char* suffix : {"_packed", "_scale", "_zero_point"}) {
      if (model.header.contains(weight_name + suffix)) {
        stored.tensors[std::string("weight") + suffix] = model.view(weight_name + suffix);
      }
    }
    std::vector<float> out(static_cast<size_t>(stored.N * stored.K));
    const absl::Status status = def.dequantize_rows(stored, 0, stored.N, out.data());
    ASSERT_TRUE(status.ok()) << weight_name << ": " << status;
    for (float& v : out) v += 0.0f;  // negative zeros become positive, as the expected hashes have it
    const std::string_view image(reinterpret_cast<const char*>(out.data()), out.size() * 4);
    EXPECT_EQ(Sha256Hex(image), entry["sha256_f32_le"].get<std::string>()) << weight_name;
  }
  EXPECT_GE(seen, 7);
}

TEST(CompressedTensorsFiles, W4Group64Symmetric) { CheckFolder("ct-pack-w4-g64-sym", kInt4W4a16, 64, true); }
TEST(CompressedTensorsFiles, W8Channel) { CheckFolder("ct-pack-w8-channel", kInt8W8a16, -1, true); }
TEST(CompressedTensorsFiles, W4Group64Asymmetric) { CheckFolder("ct-pack-w4-g64-asym-gptq", kInt4W4a16, 64, false); }

}  // namespace
}  // namespace sage
