// Format "awq": what the strategy writes is read back, the three layouts mean the same weights, and corrupt or
// contradictory folders are refused with file, tensor and rule.
#include <cstring>
#include <functional>
#include <random>

#include "engine/api/awq_linear.h"
#include "engine/base/status.h"
#include "engine/quant/awq_layout.h"
#include "engine/tensor/float_convert.h"
#include "gtest/gtest.h"
#include "tests/unit/checkpoint_formats/written_folder.h"

namespace sage {
namespace {

constexpr char kModule[] = "model.layers.0.mlp.up_proj";

// Codes, zeros and scales of a layer, and its GEMM form.
struct Layer {
  int64_t N, K, group, G;
  std::vector<uint8_t> codes, zeros;  // [N, K], [N, G]
  std::vector<uint16_t> scales;       // [N, G]
  StoredLinear gemm;
};

Layer MakeLayer(int64_t N, int64_t K, int group_size) {
  Layer out;
  out.N = N;
  out.K = K;
  out.group = group_size == -1 ? K : group_size;
  out.G = K / out.group;
  std::mt19937 random(3);
  LayerPlan plan;
  for (int64_t i = 0; i < N * out.G; ++i) {
    out.zeros.push_back(random() % 16);
    plan.zero.push_back(static_cast<float>(out.zeros.back()) - 8);
    plan.scale.push_back(0.01f + 0.001f * static_cast<float>(random() % 100));
    out.scales.push_back(FloatToF16(plan.scale.back()));
  }
  for (int64_t i = 0; i < N * K; ++i) {
    out.codes.push_back(random() % 16);
    plan.codes.push_back(static_cast<int8_t>(out.codes.back() - 8));
  }
  const std::vector<float> weights(out.codes.size(), 0.01f);
  LinearSpec spec;
  spec.strategy = "awq_w4a16";
  spec.group_size = group_size;
  ThreadPool threads(1);
  auto stored = (*FindLinearStrategy("awq_w4a16"))
                    ->quantize({DType::kF32, {N, K}, weights.data(), weights.size() * 4}, spec, plan, threads);
  EXPECT_TRUE(stored.ok()) << stored.status();
  out.gemm = *std::move(stored);
  return out;
}

std::vector<float> Values(const StoredLinear& stored) {
  const auto full = Dequantize(stored);
  EXPECT_TRUE(full.ok()) << full.status();
  if (!full.ok()) return {};
  return {full->as<float>(), full->as<float>() + stored.N * stored.K};
}

Json ConfigOf(int group_size, const char* version) {
  LinearSpec spec;
  spec.group_size = group_size;
  Json config = AwqQuantizationConfig(spec, {});
  config["version"] = version;
  return config;
}

void PutGemv(const Layer& layer, WrittenFolder* folder) {
  const std::string module = kModule;
  const int64_t width = AwqZeroWords(layer.K, layer.group);
  std::vector<uint32_t> words(static_cast<size_t>(layer.N * layer.K / 8));
  PackAwqGemv(layer.codes.data(), layer.N, layer.K, layer.K / 8, words.data());
  folder->Put(module + ".qweight", DType::kI32, {layer.N, layer.K / 8}, words.data(), words.size() * 4);
  words.resize(static_cast<size_t>(layer.N * width));
  PackAwqGemv(layer.zeros.data(), layer.N, layer.G, width, words.data());
  folder->Put(module + ".qzeros", DType::kI32, {layer.N, width}, words.data(), words.size() * 4);
  std::vector<uint16_t> scales(static_cast<size_t>(layer.N * 8 * width));
  for (int64_t n = 0; n < layer.N; ++n) {
    for (int64_t g = 0; g < layer.G; ++g) {
      scales[static_cast<size_t>(n * 8 * width + g)] = layer.scales[static_cast<size_t>(n * layer.G + g)];
    }
  }
  folder->Put(module + ".scales", DType::kF16, {layer.N, 8 * width}, scales.data(), scales.size() * 2);
}

void PutFast(const Layer& layer, WrittenFolder* folder) {
  const std::string module = kModule;
  const int64_t width = AwqZeroWords(layer.K, layer.group);
  std::vector<uint16_t> words(static_cast<size_t>(layer.N * layer.K / 4));
  PackAwqFast(layer.codes.data(), layer.N, layer.K, words.data());
  folder->Put(module + ".qweight", DType::kI16, {layer.N / 4, layer.K}, words.data(), words.size() * 2);
  std::vector<uint16_t> scales(static_cast<size_t>(layer.N * 8 * width)), zeros(scales.size());
  for (int64_t n = 0; n < layer.N; ++n) {
    for (int64_t g = 0; g < layer.G; ++g) {
      const size_t from = static_cast<size_t>(n * layer.G + g), to = static_cast<size_t>(g * layer.N + n);
      scales[to] = layer.scales[from];
      zeros[to] = FloatToF16(-F16ToFloat(layer.scales[from]) * layer.zeros[from]);
    }
  }
  folder->Put(module + ".scales", DType::kF16, {8 * width, layer.N}, scales.data(), scales.size() * 2);
  folder->Put(module + ".qzeros", DType::kF16, {8 * width, layer.N}, zeros.data(), zeros.size() * 2);
}

TEST(AwqFormat, WhatTheStrategyWritesIsReadBack) {
  for (const int group : {-1, 32, 64}) {
    const Layer layer = MakeLayer(24, 128, group);
    WrittenFolder folder;
    folder.PutModule(kModule, layer.gemm);
    const auto checkpoint = folder.Open(AwqQuantizationConfig(layer.gemm.spec, {}));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->format(), "awq");
    EXPECT_EQ((*checkpoint)->linear_names(), std::vector<std::string>{kModule});
    const auto stored = (*checkpoint)->GetLinear(kModule);
    ASSERT_TRUE(stored.ok()) << stored.status();
    EXPECT_TRUE(stored->owned.empty());
    EXPECT_EQ(stored->spec.group_size, group);
    EXPECT_FALSE(stored->spec.symmetric);
    for (const auto& [name, view] : layer.gemm.tensors) {
      ASSERT_EQ(stored->tensors.at(name).shape, view.shape) << name;
      EXPECT_EQ(std::memcmp(stored->tensors.at(name).data, view.data, view.bytes), 0) << name;
    }
    EXPECT_EQ(Values(*stored), Values(layer.gemm));
  }
}

TEST(AwqFormat, TheThreeLayoutsMeanTheSame) {
  for (const int group : {32, 64, 128, -1}) {
    const Layer layer = MakeLayer(40, 256, group);
    const std::vector<float> want = Values(layer.gemm);
    WrittenFolder gemv, fast;
    PutGemv(layer, &gemv);
    PutFast(layer, &fast);
    auto checkpoint = gemv.Open(ConfigOf(group, "gemv"));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ(Values(*(*checkpoint)->GetLinear(kModule)), want);
    EXPECT_EQ((*checkpoint)->notes().size(), 1u);
    checkpoint = fast.Open(ConfigOf(group, "GEMV_Fast"));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const auto stored = (*checkpoint)->GetLinear(kModule);
    ASSERT_TRUE(stored.ok()) << stored.status();
    const std::vector<float> values = Values(*stored);
    for (size_t n = 0; n < 40; ++n) {
      for (size_t k = 0; k < 256; ++k) {
        const size_t at = n * static_cast<size_t>(layer.G) + k / static_cast<size_t>(layer.group);
        const float scale = F16ToFloat(layer.scales[at]);
        const float zero = F16ToFloat(FloatToF16(-scale * layer.zeros[at]));
        const float product = scale * static_cast<float>(layer.codes[n * 256 + k]);
        ASSERT_EQ(values[n * 256 + k], product + zero);
        ASSERT_NEAR(values[n * 256 + k], want[n * 256 + k], 2e-3);
      }
    }
  }
}

TEST(AwqFormat, FoldersOfOlderToolsAreRead) {
  const Layer layer = MakeLayer(16, 64, 32);
  WrittenFolder folder;
  folder.PutModule(kModule, layer.gemm);
  folder.WriteTensors();
  folder.WriteJson("config.json", {{"model_type", "llama"}});
  folder.WriteJson("quant_config.json",
                   {{"w_bit", 4}, {"q_group_size", 32}, {"zero_point", true}, {"version", "GEMM"}});
  const auto checkpoint = OpenCheckpoint(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(Values(*(*checkpoint)->GetLinear(kModule)), Values(layer.gemm));
}

TEST(AwqFormat, ConfigsThatAreUnknownOrContradictAreRefused) {
  const Layer layer = MakeLayer(16, 64, 32);
  WrittenFolder folder;
  folder.PutModule(kModule, layer.gemm);
  const auto open = [&](const char* key, const Json& value) {
    Json config = ConfigOf(32, "gemm");
    config[key] = value;
    return folder.Open(config).status();
  };
  for (const auto& [key, value] : {std::pair<const char*, Json>{"bits", 8},
                                   {"version", "marlin"},
                                   {"version", "exllama"},
                                   {"zero_point", false},
                                   {"dynamic", {{"+:.*", {{"group_size", 64}}}}}}) {
    EXPECT_EQ(open(key, value).code(), absl::StatusCode::kUnimplemented) << key << value;
  }
  for (const auto& [key, value] : {std::pair<const char*, Json>{"bits", "4"},
                                   {"group_size", 0},
                                   {"group_size", int64_t{1} << 50},
                                   {"version", 4},
                                   {"modules_to_not_convert", "up_proj"},
                                   {"modules_to_not_convert", {7}},
                                   {"modules_to_not_convert", {""}}}) {
    EXPECT_EQ(open(key, value).code(), absl::StatusCode::kInvalidArgument) << key << value;
  }
  Json config = ConfigOf(32, "gemm");
  config["modules_to_not_convert"] = {"lm_head", "up_proj"};
  const auto checkpoint = folder.Open(config);
  ASSERT_TRUE(checkpoint.ok());
  const absl::Status status = (*checkpoint)->GetLinear(kModule).status();
  EXPECT_NE(std::string(status.message()).find("modules_to_not_convert names 'up_proj'"), std::string::npos) << status;
}

TEST(AwqFormat, CorruptModulesAreRefusedByTensorAndRule) {
  const Layer layer = MakeLayer(16, 128, 64);
  const std::string module = kModule;
  const std::vector<uint8_t> bytes(1 << 16, 0x31);
  struct Case {
    const char* version;
    std::function<void(WrittenFolder*)> put;
  };
  const Case cases[] = {{"gemm", [&](WrittenFolder* f) { f->PutModule(module, layer.gemm); }},
                        {"gemv", [&](WrittenFolder* f) { PutGemv(layer, f); }},
                        {"gemv_fast", [&](WrittenFolder* f) { PutFast(layer, f); }}};
  for (const Case& c : cases) {
    const auto expect = [&](const std::function<void(WrittenFolder&)>& damage, int group, const std::string& part) {
      SCOPED_TRACE(testing::Message() << c.version << " " << part);
      WrittenFolder folder;
      c.put(&folder);
      damage(folder);
      const auto checkpoint = folder.Open(ConfigOf(group, c.version));
      ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
      const absl::Status status = (*checkpoint)->GetLinear(module).status();
      EXPECT_FALSE(status.ok());
      EXPECT_NE(std::string(status.message()).find(part), std::string::npos) << status;
      EXPECT_NE(std::string(status.message()).find(folder.path()), std::string::npos) << status;
    };
    for (const char* name : {"qweight", "qzeros", "scales"}) {
      const std::string tensor = module + "." + name;
      expect([&](WrittenFolder& f) { f.Drop(tensor); }, 64, name);
      expect([&](WrittenFolder& f) { f.Put(tensor, DType::kU8, {16, 16}, bytes.data(), 256); }, 64, name);
      expect([&](WrittenFolder& f) { f.Put(tensor, DType::kF16, {3, 5}, bytes.data(), 30); }, 64, name);
      expect([&](WrittenFolder& f) { f.Put(tensor, DType::kI32, {0, 5}, bytes.data(), 0); }, 64, name);
      expect([&](WrittenFolder& f) { f.Put(tensor, DType::kI32, {8}, bytes.data(), 32); }, 64, name);
    }
    const DType dtype = std::string(c.version) == "gemv_fast" ? DType::kI16 : DType::kI32;
    expect(
        [&](WrittenFolder& f) {
          f.Put(module + ".qweight", dtype, {int64_t{1} << 47, 0}, bytes.data(), 0);
        },
        64, "qweight");
    expect([](WrittenFolder&) {}, 96, "group_size must divide K");
    expect([](WrittenFolder&) {}, 32, "must be");
    expect(
        [&](WrittenFolder& f) {
          f.Put(module + ".weight", DType::kF16, {16, 128}, bytes.data(), 4096);
        },
        64, "either weight or qweight");
  }
}

}  // namespace
}  // namespace sage
