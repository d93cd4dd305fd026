// Format "gptq": what the strategies write is read back, other people's variants mean the same weights, and corrupt or
// contradictory folders are refused with file, tensor and rule.
#include <cstring>
#include <functional>
#include <random>

#include "engine/api/gptq_linear.h"
#include "engine/base/status.h"
#include "engine/quant/packing.h"
#include "gtest/gtest.h"
#include "tests/unit/checkpoint_formats/written_folder.h"

namespace sage {
namespace {

constexpr char kModule[] = "model.layers.0.self_attn.q_proj";

LinearSpec SpecOf(int bits, int group_size, bool symmetric, bool act_order = false) {
  LinearSpec spec;
  spec.strategy = "gptq_w" + std::to_string(bits) + "a16";
  spec.group_size = group_size;
  spec.symmetric = symmetric;
  spec.act_order = act_order;
  return spec;
}

// A random layer in the strategy's own form. Zeros are 1 or more, so that they can be written in both versions.
StoredLinear MakeLayer(int64_t N, int64_t K, const LinearSpec& spec, uint32_t seed = 1) {
  const LinearStrategyDef* def = *FindLinearStrategy(spec.strategy);
  std::mt19937 random(seed);
  std::vector<float> weights(static_cast<size_t>(N * K), 0.01f);
  const int64_t G = spec.group_size == -1 ? 1 : K / spec.group_size;
  const int bits = def->weight_bits, half = 1 << (bits - 1);
  LayerPlan plan;
  for (int64_t i = 0; i < N * G; ++i) {
    plan.scale.push_back(0.01f + 0.001f * static_cast<float>(random() % 100));
    plan.zero.push_back(spec.symmetric ? 0.0f
                                       : static_cast<float>(1 + static_cast<int>(random() % (2 * half - 1)) - half));
  }
  for (int64_t i = 0; i < N * K; ++i) {
    plan.codes.push_back(static_cast<int8_t>(static_cast<int>(random() % (2 * half)) - half));
  }
  if (spec.act_order) {
    for (int64_t k = 0; k < K; ++k) plan.g_idx.push_back(static_cast<int32_t>((k * 37 + 5) % K * G / K));
  }
  ThreadPool threads(1);
  auto stored = def->quantize({DType::kF32, {N, K}, weights.data(), weights.size() * 4}, spec, plan, threads);
  EXPECT_TRUE(stored.ok()) << stored.status();
  return *std::move(stored);
}

std::vector<float> Values(const StoredLinear& stored) {
  const auto full = Dequantize(stored);
  EXPECT_TRUE(full.ok()) << full.status();
  if (!full.ok()) return {};
  return {full->as<float>(), full->as<float>() + stored.N * stored.K};
}

// The zeros of `stored` in the words of the other version.
std::vector<uint32_t> ZerosAs(const StoredLinear& stored, int bits, GptqZeros version) {
  const TensorView& qzeros = stored.tensors.at("qzeros");
  std::vector<uint8_t> zeros(static_cast<size_t>(stored.N * qzeros.dim(0)));
  UnpackGptqZeros(qzeros.data, stored.N, qzeros.dim(0), bits, GptqZerosOf(stored.spec), zeros.data());
  std::vector<uint32_t> words(qzeros.bytes / 4);
  EXPECT_TRUE(PackGptqZeros(zeros.data(), stored.N, qzeros.dim(0), bits, version, words.data()).ok());
  return words;
}

TEST(GptqFormat, WhatTheStrategiesWriteIsReadBack) {
  for (const int bits : {2, 3, 4, 8}) {
    for (const bool symmetric : {true, false}) {
      for (const bool act_order : {false, true}) {
        for (const int group : {-1, 32, 64}) {
          SCOPED_TRACE(testing::Message()
                       << bits << " bits, group " << group << ", sym " << symmetric << ", order " << act_order);
          const StoredLinear layer = MakeLayer(64, 128, SpecOf(bits, group, symmetric, act_order));
          WrittenFolder folder;
          folder.PutModule(kModule, layer);
          const std::vector<float> embedding(64 * 8, 0.5f);
          folder.Put("model.embed_tokens.weight", DType::kF32, {64, 8}, embedding.data(), embedding.size() * 4);
          const auto checkpoint = folder.Open(GptqQuantizationConfig(layer.spec, bits, {}));
          ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
          EXPECT_EQ((*checkpoint)->format(), "gptq");
          EXPECT_EQ((*checkpoint)->linear_names(), std::vector<std::string>{kModule});
          EXPECT_TRUE((*checkpoint)->notes().empty());
          const auto stored = (*checkpoint)->GetLinear(kModule);
          ASSERT_TRUE(stored.ok()) << stored.status();
          EXPECT_TRUE(stored->owned.empty());  // served from the map
          EXPECT_EQ(stored->spec.strategy, layer.spec.strategy);
          EXPECT_EQ(stored->spec.group_size, group);
          EXPECT_EQ(stored->spec.symmetric, symmetric);
          EXPECT_EQ(stored->spec.act_order, act_order);
          EXPECT_EQ(stored->spec.scale_dtype, DType::kF16);
          for (const auto& [name, view] : layer.tensors) {
            const TensorView& read = stored->tensors.at(name);
            ASSERT_EQ(read.shape, view.shape) << name;
            EXPECT_EQ(std::memcmp(read.data, view.data, view.bytes), 0) << name;
          }
          EXPECT_EQ(Values(*stored), Values(layer));
        }
      }
    }
  }
}

TEST(GptqFormat, MislabelledSymmetricZerosAreReadAsTheyAre) {
  for (const int bits : {2, 3, 4, 8}) {
    const StoredLinear layer = MakeLayer(32, 64, SpecOf(bits, 32, true));
    for (const auto& [label, version] : {std::pair{"gptq", GptqZeros::kV2}, {"gptq_v2", GptqZeros::kV1}}) {
      WrittenFolder folder;
      folder.PutModule(kModule, layer);
      const std::vector<uint32_t> words = ZerosAs(layer, bits, version);
      folder.Put(std::string(kModule) + ".qzeros", DType::kI32, layer.tensors.at("qzeros").shape, words.data(),
                 words.size() * 4);
      Json config = GptqQuantizationConfig(layer.spec, bits, {});
      config["checkpoint_format"] = config["format"] = label;
      const auto checkpoint = folder.Open(config);
      ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
      const auto stored = (*checkpoint)->GetLinear(kModule);
      ASSERT_TRUE(stored.ok()) << stored.status();
      EXPECT_TRUE(stored->spec.symmetric);
      EXPECT_EQ(Values(*stored), Values(layer));
      ASSERT_EQ((*checkpoint)->notes().size(), 1u);
      EXPECT_NE((*checkpoint)->notes()[0].find("1 modules"), std::string::npos);
      // Rightly labelled, the same words need no note.
      config["checkpoint_format"] = config["format"] = version == GptqZeros::kV1 ? "gptq" : "gptq_v2";
      const auto right = folder.Open(config);
      ASSERT_TRUE(right.ok());
      EXPECT_TRUE((*right)->notes().empty());
      EXPECT_EQ(Values(*(*right)->GetLinear(kModule)), Values(layer));
    }
  }
}

TEST(GptqFormat, AsymmetricZerosOfBothVersionsMeanTheSame) {
  for (const int bits : {2, 3, 4, 8}) {
    const StoredLinear layer = MakeLayer(32, 64, SpecOf(bits, 16, false));
    WrittenFolder folder;
    folder.PutModule(kModule, layer);
    const std::vector<uint32_t> v1 = ZerosAs(layer, bits, GptqZeros::kV1);
    folder.Put(std::string(kModule) + ".qzeros", DType::kI32, layer.tensors.at("qzeros").shape, v1.data(),
               v1.size() * 4);
    Json config = GptqQuantizationConfig(layer.spec, bits, {});
    config["checkpoint_format"] = config["format"] = "gptq";
    auto checkpoint = folder.Open(config);
    ASSERT_TRUE(checkpoint.ok());
    EXPECT_EQ(Values(*(*checkpoint)->GetLinear(kModule)), Values(layer));
    // Without "sym" the zeros decide that the layer is asymmetric.
    config.erase("sym");
    checkpoint = folder.Open(config);
    ASSERT_TRUE(checkpoint.ok());
    const auto stored = (*checkpoint)->GetLinear(kModule);
    ASSERT_TRUE(stored.ok()) << stored.status();
    EXPECT_FALSE(stored->spec.symmetric);
    EXPECT_EQ(Values(*stored), Values(layer));
    // All ones is a zero of 0: masked after one is added.
    const std::vector<uint32_t> ones(v1.size(), 0xFFFFFFFFu);
    folder.Put(std::string(kModule) + ".qzeros", DType::kI32, layer.tensors.at("qzeros").shape, ones.data(),
               ones.size() * 4);
    config["sym"] = false;
    checkpoint = folder.Open(config);
    ASSERT_TRUE(checkpoint.ok());
    const std::vector<float> values = Values(*(*checkpoint)->GetLinear(kModule));
    for (const float v : values) ASSERT_GE(v, 0.0f);
  }
}

TEST(GptqFormat, FoldersOfOlderToolsAreRead) {
  const StoredLinear layer = MakeLayer(32, 64, SpecOf(4, 32, true));
  WrittenFolder folder;
  folder.PutModule(kModule, layer);
  folder.Drop(std::string(kModule) + ".g_idx");
  folder.WriteJson("config.json", {{"model_type", "llama"}});
  folder.WriteJson(
      "quantize_config.json",
      {{"w_bit", 4}, {"q_group_size", 32}, {"desc_act", false}, {"model_file_base_name", "gptq_model-4bit-32g"}});
  folder.WriteTensors("gptq_model-4bit-32g.safetensors");
  const auto checkpoint = OpenCheckpoint(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->format(), "gptq");
  EXPECT_EQ(Values(*(*checkpoint)->GetLinear(kModule)), Values(layer));
  EXPECT_TRUE((*checkpoint)->Fingerprint().ok());
  folder.WriteJson("quantize_config.json",
                   {{"bits", 4}, {"group_size", 32}, {"model_file_base_name", "../" + folder.path().substr(1)}});
  EXPECT_FALSE(OpenCheckpoint(folder.path()).ok());
}

TEST(GptqFormat, DynamicRulesDecideInTheOrderOfTheFile) {
  const StoredLinear q = MakeLayer(32, 64, SpecOf(4, 32, true)), k = MakeLayer(32, 64, SpecOf(8, 64, true), 2);
  const std::string other = "model.layers.0.self_attn.k_proj", dense = "model.layers.0.mlp.down_proj";
  WrittenFolder folder;
  folder.PutModule(kModule, q);
  folder.PutModule(other, k);
  const std::vector<float> weight(32 * 64, 1.0f);
  folder.Put(dense + ".weight", DType::kF32, {32, 64}, weight.data(), weight.size() * 4);
  folder.WriteTensors();
  const auto open = [&](const std::string& dynamic) {
    folder.Write(R"({"model_type":"llama","quantization_config":{"quant_method":"gptq","bits":4,"group_size":32,)"
                 R"("desc_act":false,"sym":true,"dynamic":)" +
                     dynamic + "}}",
                 "config.json");
    return OpenCheckpoint(folder.path());
  };
  // Sorted by name, the last rule would come first.
  auto checkpoint = open(R"({"+:.*\\.k_proj$":{"bits":8,"group_size":64},"-:.*down_proj":{},)"
                         R"("+:.*\\.[a-z]_proj":{"bits":2}, ".*q_proj":{"bits":4}})");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(Values(*(*checkpoint)->GetLinear(other)), Values(k));
  EXPECT_EQ((*checkpoint)->GetLinear(dense)->spec.strategy, "f32");
  const auto wrong = (*checkpoint)->GetLinear(kModule);  // the 2-bit rule comes before its own
  EXPECT_EQ(GetErrorReason(wrong.status()).reason, "CHECKPOINT_INVALID");
  EXPECT_NE(std::string(wrong.status().message()).find("q_proj"), std::string::npos) << wrong.status();
  checkpoint = open(R"({".*q_proj":{"bits":4}, "+:.*\\.[a-z]_proj":{"bits":8,"group_size":64}})");
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_EQ(Values(*(*checkpoint)->GetLinear(kModule)), Values(q));
  EXPECT_EQ(Values(*(*checkpoint)->GetLinear(other)), Values(k));
  // Patterns match at the start of a name, and not in its middle.
  checkpoint = open(R"({"k_proj":{"bits":8,"group_size":64}})");
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_FALSE((*checkpoint)->GetLinear(other).ok());

  checkpoint = open(R"({"-:.*q_proj":{}})");
  ASSERT_TRUE(checkpoint.ok());
  const auto excluded = (*checkpoint)->GetLinear(kModule);
  EXPECT_NE(std::string(excluded.status().message()).find("excludes the module"), std::string::npos)
      << excluded.status();
  checkpoint = open(R"({".*":{"format":"marlin"}})");
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_EQ((*checkpoint)->GetLinear(kModule).status().code(), absl::StatusCode::kUnimplemented);

  EXPECT_EQ(GetErrorReason(open(R"({"+:(":{}})").status()).reason, "BAD_MODULE_PATTERN");
  EXPECT_EQ(GetErrorReason(open(R"({"+:a)(b":{}})").status()).reason, "BAD_MODULE_PATTERN");
  EXPECT_EQ(GetErrorReason(open(R"([1])").status()).reason, "CHECKPOINT_INVALID");
  EXPECT_EQ(GetErrorReason(open(R"({".*":3})").status()).reason, "CHECKPOINT_INVALID");
  Json many = Json::object();
  for (int i = 0; i < 300; ++i) many["+:layer" + std::to_string(i)] = Json::object();
  EXPECT_EQ(GetErrorReason(open(many.dump()).status()).reason, "CHECKPOINT_INVALID");
}

TEST(GptqFormat, ARuleThatNeverEndsIsStopped) {
  const std::string module = std::string(60, 'a') + ".q_proj";
  const StoredLinear layer = MakeLayer(32, 64, SpecOf(4, 32, true));
  WrittenFolder folder;
  folder.PutModule(module, layer);
  Json config = GptqQuantizationConfig(layer.spec, 4, {});
  config["dynamic"] = {{"+:(a|aa|a+)+$", Json::object()}};
  const auto checkpoint = folder.Open(config);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->GetLinear(module).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(GptqFormat, ConfigsThatContradictOrAreUnknownAreRefused) {
  const StoredLinear layer = MakeLayer(32, 64, SpecOf(4, 32, true));
  WrittenFolder folder;
  folder.PutModule(kModule, layer);
  const Json good = GptqQuantizationConfig(layer.spec, 4, {});
  const auto open = [&](const char* key, const Json& value) {
    Json config = good;
    config[key] = value;
    if (std::string(key) == "checkpoint_format") config["format"] = value;
    return folder.Open(config).status();
  };
  for (const auto& [key, value] : {std::pair<const char*, Json>{"bits", 5},
                                   {"checkpoint_format", "marlin"},
                                   {"checkpoint_format", "gptq_p"},
                                   {"is_marlin_format", true},
                                   {"pack_dtype", "int64"}}) {
    EXPECT_EQ(open(key, value).code(), absl::StatusCode::kUnimplemented) << key << value;
  }
  for (const auto& [key, value] : {std::pair<const char*, Json>{"bits", 0},
                                   {"bits", 4000000000000},
                                   {"bits", "four"},
                                   {"group_size", 0},
                                   {"group_size", -7},
                                   {"group_size", int64_t{1} << 60},
                                   {"desc_act", 1},
                                   {"sym", "yes"},
                                   {"checkpoint_format", 4}}) {
    EXPECT_EQ(open(key, value).code(), absl::StatusCode::kInvalidArgument) << key << value;
  }
  Json lacking = good;
  lacking.erase("bits");
  EXPECT_EQ(GetErrorReason(folder.Open(lacking).status()).reason, "CHECKPOINT_INVALID");
  // The file beside config.json must say the same.
  Json side = good;
  folder.WriteJson("quantize_config.json", side);
  EXPECT_TRUE(folder.Open(good).ok());
  side["group_size"] = 64;
  folder.WriteJson("quantize_config.json", side);
  const absl::Status status = folder.Open(good).status();
  EXPECT_NE(std::string(status.message()).find("quantize_config.json must agree, got group_size"), std::string::npos)
      << status;
  folder.Write("{", "quantize_config.json");
  EXPECT_EQ(folder.Open(good).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(GptqFormat, CorruptModulesAreRefusedByTensorAndRule) {
  const StoredLinear layer = MakeLayer(32, 64, SpecOf(4, 32, true));
  const std::string module = kModule;
  const auto expect = [&](const std::function<void(WrittenFolder&)>& damage, Json config, const std::string& part) {
    WrittenFolder folder;
    folder.PutModule(module, layer);
    damage(folder);
    const auto checkpoint = folder.Open(config);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    (*checkpoint)->notes();
    const absl::Status status = (*checkpoint)->GetLinear(module).status();
    EXPECT_FALSE(status.ok()) << part;
    EXPECT_NE(std::string(status.message()).find(part), std::string::npos) << status;
    EXPECT_NE(std::string(status.message()).find(folder.path()), std::string::npos) << status;
  };
  const Json good = GptqQuantizationConfig(layer.spec, 4, {});
  const std::vector<uint8_t> bytes(1 << 16, 0x31);
  for (const char* name : {"qweight", "qzeros", "scales", "g_idx"}) {
    const std::string tensor = module + "." + name;
    if (std::string(name) != "g_idx") expect([&](WrittenFolder& f) { f.Drop(tensor); }, good, name);
    const Shape shape = layer.tensors.at(name).shape;
    const int64_t count = layer.tensors.at(name).elements();
    expect([&](WrittenFolder& f) { f.Put(tensor, DType::kI8, shape, bytes.data(), static_cast<size_t>(count)); }, good,
           name);
    Shape taller = shape;
    taller[0] += 1;
    const DType dtype = layer.tensors.at(name).dtype;
    const size_t size = static_cast<size_t>(count / shape[0] * taller[0]) * DTypeSize(dtype);
    if (std::string(name) != "qweight") {
      expect([&](WrittenFolder& f) { f.Put(tensor, dtype, taller, bytes.data(), size); }, good, name);
    }
    expect([&](WrittenFolder& f) { f.Put(tensor, dtype, {count}, bytes.data(), layer.tensors.at(name).bytes); }, good,
           std::string(name) == "g_idx" ? "g_idx" : name);
    expect([&](WrittenFolder& f) { f.Put(tensor, dtype, {0, 7}, bytes.data(), 0); }, good, name);
  }
  expect(
      [&](WrittenFolder& f) {
        f.Put(module + ".qweight", DType::kI32, {int64_t{1} << 47, 0}, bytes.data(), 0);
      },
      good, "qweight");
  const std::vector<float> weight(32 * 64);
  expect(
      [&](WrittenFolder& f) {
        f.Put(module + ".weight", DType::kF32, {32, 64}, weight.data(), 8192);
      },
      good, "either weight or qweight");
  // Zeros of one group differ although the file says it is symmetric.
  std::vector<uint32_t> zeros(8, 0x77777777u);
  zeros[5] = 0x77777677u;
  expect(
      [&](WrittenFolder& f) {
        f.Put(module + ".qzeros", DType::kI32, {2, 4}, zeros.data(), 32);
      },
      good, "qzeros must all mean 8");
  std::vector<int32_t> g_idx(64, 1);
  expect([&](WrittenFolder& f) { f.Put(module + ".g_idx", DType::kI32, {64}, g_idx.data(), 256); }, good,
         "g_idx must be input / group_size when desc_act is false, got 1 at 0");
  Json ordered = good;
  ordered["desc_act"] = true;
  expect([&](WrittenFolder& f) { f.Drop(module + ".g_idx"); }, ordered, "g_idx must be present");
  g_idx[9] = 2;
  expect([&](WrittenFolder& f) { f.Put(module + ".g_idx", DType::kI32, {64}, g_idx.data(), 256); }, ordered,
         "g_idx must be in 0 .. 1, got 2 at 9");
  g_idx[9] = -1;
  expect([&](WrittenFolder& f) { f.Put(module + ".g_idx", DType::kI32, {64}, g_idx.data(), 256); }, ordered,
         "got -1 at 9");
  Json eight = good;  // the words are those of 4 bits
  eight["bits"] = 8;
  expect([](WrittenFolder&) {}, eight, "must be");
  Json wide = good;
  wide["group_size"] = 16;
  expect([](WrittenFolder&) {}, wide, "qzeros must be I32 [4, 4] (4 bits, K=64, group_size=16), got I32 [2, 4]");
}

}  // namespace
}  // namespace sage
