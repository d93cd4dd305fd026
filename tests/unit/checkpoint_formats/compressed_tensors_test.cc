// Format "compressed_tensors", integers: every width and packing means the same weights, groups find their modules by
// target, and what contradicts itself is refused with file, tensor and rule.
#include <cstring>
#include <functional>
#include <random>

#include "engine/api/linear_strategy.h"
#include "engine/base/status.h"
#include "engine/quant/packing.h"
#include "gtest/gtest.h"
#include "tests/unit/checkpoint_formats/written_folder.h"

namespace sage {
namespace {

constexpr char kModule[] = "model.layers.0.self_attn.q_proj";

// Random codes, scales and zeros of a layer, and what they mean.
struct Layer {
  int64_t N, K, G;
  int bits;
  std::vector<int8_t> codes, zeros;
  std::vector<float> scales;

  Layer(int64_t n, int64_t k, int64_t g, int b, bool asymmetric, uint32_t seed = 1) : N(n), K(k), G(g), bits(b) {
    std::mt19937 random(seed);
    const int half = 1 << (bits - 1);
    for (int64_t i = 0; i < N * K; ++i) {
      codes.push_back(static_cast<int8_t>(static_cast<int>(random() % (2u * static_cast<unsigned>(half))) - half));
    }
    for (int64_t i = 0; i < N * G; ++i) {
      scales.push_back(0.01f + 0.001f * static_cast<float>(random() % 100));
      if (asymmetric) {
        zeros.push_back(static_cast<int8_t>(static_cast<int>(random() % (2u * static_cast<unsigned>(half))) - half));
      }
    }
  }
  float Value(int64_t i) const {
    const size_t at = static_cast<size_t>(i / K * G + i % K / (K / G));
    return static_cast<float>(codes[static_cast<size_t>(i)] - (zeros.empty() ? 0 : zeros[at])) * scales[at];
  }
};

// `count` codes in words with the top bits of each word unused where `dense` is false.
std::vector<uint32_t> Words(const std::vector<int8_t>& codes, int64_t begin, int64_t count, int64_t step, int bits,
                            bool dense) {
  const int half = 1 << (bits - 1), each = 32 / bits;
  std::vector<uint32_t> words(static_cast<size_t>(dense ? PackedWords(count, bits) : (count + each - 1) / each));
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t code = static_cast<uint64_t>(codes[static_cast<size_t>(begin + i * step)] + half);
    const int64_t bit = dense ? i * bits : i / each * 32 + i % each * bits;
    words[static_cast<size_t>(bit / 32)] |= static_cast<uint32_t>(code << (bit % 32));
    if (bit % 32 + bits > 32)
      words[static_cast<size_t>(bit / 32 + 1)] |= static_cast<uint32_t>(code >> (32 - bit % 32));
  }
  return words;
}

void PutScales(const Layer& layer, const std::string& module, WrittenFolder& folder) {
  folder.Put(module + ".weight_scale", DType::kF32, {layer.N, layer.G}, layer.scales.data(), layer.scales.size() * 4);
}

void PutPacked(const Layer& layer, const std::string& module, bool dense, WrittenFolder& folder) {
  std::vector<uint32_t> all;
  for (int64_t n = 0; n < layer.N; ++n) {
    const auto row = Words(layer.codes, n * layer.K, layer.K, 1, layer.bits, dense);
    all.insert(all.end(), row.begin(), row.end());
  }
  const int64_t shape[2] = {layer.N, layer.K};
  folder.Put(module + ".weight_packed", DType::kI32, {layer.N, static_cast<int64_t>(all.size()) / layer.N}, all.data(),
             all.size() * 4);
  folder.Put(module + ".weight_shape", DType::kI64, {2}, shape, 16);
  PutScales(layer, module, folder);
  if (layer.zeros.empty()) return;
  std::vector<std::vector<uint32_t>> columns;
  for (int64_t g = 0; g < layer.G; ++g) columns.push_back(Words(layer.zeros, g, layer.N, layer.G, layer.bits, dense));
  std::vector<uint32_t> zeros;
  for (size_t r = 0; r < columns[0].size(); ++r) {
    for (const auto& column : columns) zeros.push_back(column[r]);
  }
  folder.Put(module + ".weight_zero_point", DType::kI32, {static_cast<int64_t>(columns[0].size()), layer.G},
             zeros.data(), zeros.size() * 4);
}

void PutBytes(const Layer& layer, const std::string& module, WrittenFolder& folder) {
  folder.Put(module + ".weight", DType::kI8, {layer.N, layer.K}, layer.codes.data(), layer.codes.size());
  PutScales(layer, module, folder);
  if (!layer.zeros.empty()) {
    folder.Put(module + ".weight_zero_point", DType::kI8, {layer.N, layer.G}, layer.zeros.data(), layer.zeros.size());
  }
}

Json Group(int bits, const char* format, bool activations, int group_size, bool symmetric) {
  Json group = {{"targets", {"Linear"}},
                {"format", format},
                {"weights",
                 {{"num_bits", bits},
                  {"type", "int"},
                  {"strategy", group_size > 0 ? "group" : "channel"},
                  {"symmetric", symmetric}}},
                {"input_activations", nullptr}};
  if (group_size > 0) group["weights"]["group_size"] = group_size;
  if (activations) {
    group["input_activations"] = {{"num_bits", 8}, {"type", "int"}, {"strategy", "token"}, {"dynamic", true}};
  }
  return group;
}

Json Config(const Json& groups, const char* format = "mixed-precision") {
  return {
      {"quant_method", "compressed-tensors"}, {"format", format}, {"config_groups", groups}, {"ignore", {"lm_head"}}};
}

void ExpectValues(const Layer& layer, const absl::StatusOr<std::shared_ptr<Checkpoint>>& checkpoint,
                  const std::string& module, const char* strategy) {
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto stored = (*checkpoint)->GetLinear(module);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->spec.strategy, strategy);
  EXPECT_EQ(stored->spec.symmetric, layer.zeros.empty());
  const auto values = Dequantize(*stored);
  ASSERT_TRUE(values.ok()) << values.status();
  for (int64_t i = 0; i < layer.N * layer.K; ++i) ASSERT_EQ(values->as<float>()[i], layer.Value(i)) << i;
}

TEST(CompressedTensorsIntegers, EveryWidthAndPackingMeansTheSame) {
  std::mt19937 random(3);
  for (int bits = 2; bits <= 8; ++bits) {
    for (const bool asymmetric : {false, true}) {
      // 7 rows and 96 inputs fill words of no width evenly.
      const int64_t N = 7 + static_cast<int64_t>(random() % 9), K = 96, G = random() % 2 == 0 ? 3 : 1;
      const Layer layer(N, K, G, bits, asymmetric, static_cast<uint32_t>(random()));
      const int group = G == 1 ? 0 : 32;
      for (const bool dense : {true, false}) {
        WrittenFolder folder;
        PutPacked(layer, kModule, dense, folder);
        const char* plain = bits == 4 ? "int4_w4a16" : "int8_w8a16";
        ExpectValues(layer, folder.Open(Config({{"g", Group(bits, "pack-quantized", false, group, !asymmetric)}})),
                     kModule, plain);
        ExpectValues(layer, folder.Open(Config({{"g", Group(bits, "pack-quantized", true, group, !asymmetric)}})),
                     kModule, bits == 4 ? "int4_w4a8" : "int8_w8a8");
      }
      WrittenFolder bytes;
      PutBytes(layer, kModule, bytes);
      ExpectValues(layer, bytes.Open(Config({{"g", Group(bits, "naive-quantized", false, group, !asymmetric)}})),
                   kModule, "int8_w8a16");
      ExpectValues(layer, bytes.Open(Config({{"g", Group(bits, "int-quantized", true, group, !asymmetric)}})), kModule,
                   bits == 4 ? "int4_w4a8" : "int8_w8a8");
    }
  }
}

TEST(CompressedTensorsIntegers, GroupsFindTheirModules) {
  const Layer three(8, 64, 2, 3, false), four(8, 64, 2, 4, true), eight(8, 64, 1, 8, false);
  const std::string named = "model.layers.0.mlp.up_proj", matched = "model.layers.1.mlp.down_proj";
  WrittenFolder folder;
  PutPacked(three, named, true, folder);
  PutPacked(four, matched, true, folder);
  PutBytes(eight, kModule, folder);
  Json a = Group(8, "int-quantized", true, 0, true), b = Group(4, "pack-quantized", false, 32, false),
       c = Group(3, "pack-quantized", false, 32, true);
  b["targets"] = {"re:.*layers\\.[0-9]+\\.mlp\\..*"};  // the name of the next group beats it
  c["targets"] = {named};
  const Json config = Config({{"group_0", a}, {"group_1", b}, {"group_2", c}});
  ExpectValues(three, folder.Open(config), named, "int8_w8a16");
  ExpectValues(four, folder.Open(config), matched, "int4_w4a16");
  ExpectValues(eight, folder.Open(config), kModule, "int8_w8a8");
  const auto checkpoint = folder.Open(config);
  ASSERT_EQ((*checkpoint)->notes().size(), 1u);
  EXPECT_NE((*checkpoint)->notes()[0].find("3-bit"), std::string::npos);
}

TEST(CompressedTensorsIntegers, OneScaleForTheTensor) {
  Layer layer(6, 32, 1, 8, false);
  for (float& scale : layer.scales) scale = 0.5f;
  WrittenFolder folder;
  PutBytes(layer, kModule, folder);
  folder.Put(std::string(kModule) + ".weight_scale", DType::kF32, {1}, layer.scales.data(), 4);
  Json group = Group(8, "int-quantized", true, 0, true);
  group["weights"]["strategy"] = "tensor";
  ExpectValues(layer, folder.Open(Config({{"g", group}})), kModule, "int8_w8a8");
}

TEST(CompressedTensorsIntegers, ContradictionsAreRefusedByTensorAndRule) {
  struct Case {
    const char* what;
    std::function<void(WrittenFolder&, Json&)> damage;
    const char* says;  // in the message
  };
  const std::string m = kModule;
  const std::vector<char> zeros(4096);
  const auto put = [&](const char* name, DType dtype, Shape shape) {
    return [=](WrittenFolder& f, Json&) {
      int64_t count = 1;
      for (const int64_t size : shape) count *= size;
      f.Put(m + name, dtype, shape, zeros.data(), static_cast<size_t>(count) * DTypeSize(dtype));
    };
  };
  const Case cases[] = {
      {"bits lie", [](WrittenFolder&, Json& g) { g["weights"]["num_bits"] = 8; }, "weight_packed must be I32 [8, 16]"},
      {"more bits", [](WrittenFolder&, Json& g) { g["weights"]["num_bits"] = 9; }, "2 to 8 bits"},
      {"group size lies", [](WrittenFolder&, Json& g) { g["weights"]["group_size"] = 16; }, "group_size 16"},
      {"group size is negative", [](WrittenFolder&, Json& g) { g["weights"]["group_size"] = -7; }, "group_size"},
      {"channel lies", [](WrittenFolder&, Json& g) { g["weights"]["strategy"] = "channel"; }, "strategy channel"},
      {"zeros are missing", [&](WrittenFolder& f, Json&) { f.Drop(m + ".weight_zero_point"); }, "no weight_zero_point"},
      {"scale is missing", [&](WrittenFolder& f, Json&) { f.Drop(m + ".weight_scale"); }, "weight_scale"},
      {"shape is missing", [&](WrittenFolder& f, Json&) { f.Drop(m + ".weight_shape"); }, "weight_shape"},
      {"shape is empty", put(".weight_shape", DType::kI64, {2}), "must be positive"},
      {"shape has three numbers", put(".weight_shape", DType::kI64, {3}), "two integers"},
      {"shape is of floats", put(".weight_shape", DType::kF32, {2}), "two integers"},
      {"packed rows are missing", put(".weight_packed", DType::kI32, {7, 8}), "weight_packed must be I32 [8, 8]"},
      {"packed words are missing", put(".weight_packed", DType::kI32, {8, 7}), "weight_packed must be I32 [8, 8]"},
      {"packed is of other type", put(".weight_packed", DType::kI64, {8, 8}), "weight_packed must be I32"},
      {"scales do not divide", put(".weight_scale", DType::kF32, {8, 3}), "G dividing 64"},
      {"scales are integers", put(".weight_scale", DType::kI32, {8, 2}), "weight_scale must be"},
      {"zeros of other shape", put(".weight_zero_point", DType::kI32, {2, 2}), "weight_zero_point"},
      {"zeros of other type", put(".weight_zero_point", DType::kI8, {8, 2}), "weight_zero_point"},
      {"g_idx of other length",
       [&](WrittenFolder& f, Json& g) {
         g["weights"]["actorder"] = "group";
         f.Put(m + ".weight_g_idx", DType::kI32, {63}, zeros.data(), 252);
       },
       "weight_g_idx"},
      {"g_idx out of range",
       [&](WrittenFolder& f, Json& g) {
         const std::vector<int32_t> groups(64, 2);
         g["weights"]["actorder"] = "group";
         f.Put(m + ".weight_g_idx", DType::kI32, {64}, groups.data(), 256);
       },
       "weight_g_idx"},
      {"g_idx that nothing announces",
       [&](WrittenFolder& f, Json& g) {
         g["weights"]["actorder"] = "static";
         f.Put(m + ".weight_g_idx", DType::kI32, {64}, zeros.data(), 256);
       },
       "the actorder of group_0 is not group"},
      {"targets nothing", [](WrittenFolder&, Json& g) { g["targets"] = {"re:.*mlp.*"}; }, "no integer group"},
      {"targets are no names", [](WrittenFolder&, Json& g) { g["targets"] = "Linear"; }, "targets must be an array"},
      {"pattern is no expression", [](WrittenFolder&, Json& g) { g["targets"] = {"re:(("}; }, "regular expression"},
      {"says bytes", [](WrittenFolder&, Json& g) { g["format"] = "int-quantized"; }, "a byte a code"},
      {"unknown format", [](WrittenFolder&, Json& g) { g["format"] = "marlin-24"; }, "marlin-24"},
      {"static without a scale",
       [](WrittenFolder&, Json& g) {
         g["input_activations"] = {{"num_bits", 8}, {"type", "int"}, {"strategy", "tensor"}, {"dynamic", false}};
       },
       "no input_scale"},
      {"activations of four bits",
       [](WrittenFolder&, Json& g) {
         g["input_activations"] = {{"num_bits", 4}, {"strategy", "token"}};
       },
       "input_activations must be 8-bit"},
  };
  const Case more[] = {
      {"symmetric with zeros", [](WrittenFolder&, Json& g) { g["weights"]["symmetric"] = true; },
       "has a weight_zero_point, and group_0 says symmetric true"},
      {"outputs are quantized",
       [](WrittenFolder&, Json& g) {
         g["output_activations"] = {{"num_bits", 8}, {"type", "int"}};
       },
       "output_activations must be null"},
  };
  std::vector<Case> all(std::begin(cases), std::end(cases));
  all.insert(all.end(), std::begin(more), std::end(more));
  for (const Case& c : all) {
    const Layer layer(8, 64, 2, 4, true);
    WrittenFolder folder;
    PutPacked(layer, kModule, true, folder);
    Json group = Group(4, "pack-quantized", false, 32, false);
    c.damage(folder, group);
    const auto checkpoint = folder.Open(Config({{"group_0", group}}));
    absl::Status status = checkpoint.status();
    if (checkpoint.ok()) {
      const auto stored = (*checkpoint)->GetLinear(kModule);
      status = stored.ok() ? Dequantize(*stored).status() : stored.status();
    }
    EXPECT_FALSE(status.ok()) << c.what;
    EXPECT_NE(std::string(status.message()).find(c.says), std::string::npos) << c.what << ": " << status;
    EXPECT_NE(GetErrorReason(status).reason, "") << c.what << ": " << status;
  }
}

TEST(CompressedTensorsIntegers, BytesOutOfRangeAreRefused) {
  Layer layer(4, 32, 1, 3, false);
  layer.codes[5] = 4;  // three bits end at 3
  WrittenFolder folder;
  PutBytes(layer, kModule, folder);
  const auto checkpoint = folder.Open(Config({{"g", Group(3, "naive-quantized", false, 0, true)}}));
  ASSERT_TRUE(checkpoint.ok());
  const absl::Status status = (*checkpoint)->GetLinear(kModule).status();
  EXPECT_EQ(GetErrorReason(status).reason, "CHECKPOINT_INVALID");
  EXPECT_NE(std::string(status.message()).find("got 4"), std::string::npos) << status;
}

// What a layer's activations are stands in the config and in its tensors: both must say the same.
TEST(CompressedTensorsIntegers, ActivationsThatContradictAreRefused) {
  struct Case {
    const char* what;
    Json activations;
    bool scale, zero;
    const char* says;  // "" = accepted
  };
  const auto words = [](const char* strategy, const Json& dynamic, bool symmetric) {
    return Json{
        {"num_bits", 8}, {"type", "int"}, {"strategy", strategy}, {"dynamic", dynamic}, {"symmetric", symmetric}};
  };
  const Case cases[] = {
      {"dynamic", words("token", true, true), false, false, ""},
      {"dynamic with zero points", words("token", true, false), false, false, ""},
      {"static", words("tensor", false, true), true, false, ""},
      {"static with a zero point", words("tensor", false, false), true, true, ""},
      {"dynamic with a scale", words("token", true, true), true, false, "has an input_scale"},
      {"dynamic with a zero point", words("token", true, false), false, true, "has an input_zero_point"},
      {"dynamic by tensor", words("tensor", true, true), false, false, "must have strategy token"},
      {"static by token", words("token", false, true), true, false, "must have strategy tensor"},
      {"static, zero point missing", words("tensor", false, false), true, false, "has no input_zero_point"},
      {"static, symmetric with a zero point", words("tensor", false, true), true, true, "has an input_zero_point"},
      {"static, scale missing", words("tensor", false, true), false, false, "has no input_scale"},
      {"local", words("token", "local", true), false, false, "must have dynamic true or false"},
  };
  for (const Case& c : cases) {
    const Layer layer(8, 64, 1, 8, false);
    WrittenFolder folder;
    PutBytes(layer, kModule, folder);
    const float scale = 0.5f;
    const int8_t zero = 3;
    if (c.scale) folder.Put(std::string(kModule) + ".input_scale", DType::kF32, {1}, &scale, 4);
    if (c.zero) folder.Put(std::string(kModule) + ".input_zero_point", DType::kI8, {1}, &zero, 1);
    Json group = Group(8, "int-quantized", false, 0, true);
    group["input_activations"] = c.activations;
    const auto checkpoint = folder.Open(Config({{"group_0", group}}, "int-quantized"));
    const absl::Status status = checkpoint.ok() ? (*checkpoint)->GetLinear(kModule).status() : checkpoint.status();
    if (*c.says == 0) {
      EXPECT_TRUE(status.ok()) << c.what << ": " << status;
      continue;
    }
    EXPECT_NE(std::string(status.message()).find(c.says), std::string::npos) << c.what << ": " << status;
    EXPECT_NE(GetErrorReason(status).reason, "") << c.what;
  }
}

// Words beside the groups that would change what a layer computes.
TEST(CompressedTensorsIntegers, WordsOfTheWholeConfigAreHeardOrRefused) {
  struct Case {
    const char* what;
    std::function<void(Json&)> say;
    const char* says;  // "" = accepted
  };
  const auto transform = [](const char* location) {
    return [=](Json& c) {
      const Json apply = Json::array({{{"location", location}, {"targets", {"Linear"}}}});
      c["transform_config"] = {{"config_groups", {{"R4", {{"type", "hadamard"}, {"apply", apply}}}}}};
    };
  };
  const Case cases[] = {
      {"others are ignored",
       [](Json& c) {
         c["ignore"] = {"lm_head", "re:.*other"};
       },
       ""},
      {"ignored by name", [](Json& c) { c["ignore"] = {kModule}; }, "ignore names the module"},
      {"ignored by pattern", [](Json& c) { c["ignore"] = {"re:model.*"}; }, "ignore names the module"},
      {"ignore is no list", [](Json& c) { c["ignore"] = "lm_head"; }, "must be an array"},
      {"folded", transform("weight_input"), ""},
      {"turned at run time", transform("input"), "R4 must be folded into the weights, got location 'input'"},
      {"a transform without places",
       [](Json& c) {
         c["transform_config"] = {{"config_groups", {{"R1", {}}}}};
       },
       "apply"},
      {"nothing to turn", [](Json& c) { c["transform_config"] = Json::object(); }, ""},
      {"dense",
       [](Json& c) {
         c["sparsity_config"] = {{"format", "dense"}};
       },
       ""},
      {"sparse",
       [](Json& c) {
         c["sparsity_config"] = {{"format", "sparse-24-bitmask"}};
       },
       "sparsity_config: must be dense"},
  };
  for (const Case& c : cases) {
    const Layer layer(8, 64, 2, 4, false);
    WrittenFolder folder;
    PutPacked(layer, kModule, true, folder);
    Json config = Config({{"group_0", Group(4, "pack-quantized", false, 32, true)}});
    c.say(config.contains("quantization_config") ? config["quantization_config"] : config);
    const auto checkpoint = folder.Open(config);
    const absl::Status status = checkpoint.ok() ? (*checkpoint)->GetLinear(kModule).status() : checkpoint.status();
    if (*c.says == 0) {
      EXPECT_TRUE(status.ok()) << c.what << ": " << status;
    } else {
      EXPECT_NE(std::string(status.message()).find(c.says), std::string::npos) << c.what << ": " << status;
    }
  }
}

}  // namespace
}  // namespace sage
