// Format "ascend_v1": every type that is served means what msModelSlim's formulas say, and descriptions that contradict
// the weights are refused.
#include <cmath>
#include <cstring>
#include <functional>

#include "engine/api/linear_strategy.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "tests/unit/checkpoint_formats/written_folder.h"

namespace sage {
namespace {

constexpr int64_t N = 6, K = 32;
const std::string kModule = "model.layers.0.self_attn.k_proj";

class AscendFolder : public WrittenFolder {
 public:
  AscendFolder() {
    for (int64_t i = 0; i < N * K; ++i) codes.push_back(static_cast<int8_t>((i * 37) % 256 - 128));
    for (int64_t n = 0; n < N; ++n) scales.push_back(0.01f * static_cast<float>(n + 1));
  }
  void PutFloats(const std::string& name, const std::vector<float>& values, Shape shape) {
    Put(name, DType::kF32, std::move(shape), values.data(), values.size() * 4);
  }
  // A module of `type` with codes and scales, and its lines in the description.
  void PutModule8(const std::string& type, const std::vector<float>& offsets) {
    Put(kModule + ".weight", DType::kI8, {N, K}, codes.data(), codes.size());
    PutFloats(kModule + ".weight_scale", scales, {N, 1});
    PutFloats(kModule + ".weight_offset", offsets, {N, 1});
    for (const char* name : {".weight", ".weight_scale", ".weight_offset"}) description[kModule + name] = type;
  }
  absl::StatusOr<std::shared_ptr<Checkpoint>> OpenIt(
      const std::string& file = "quant_model_weights.safetensors") const {
    WriteJson("config.json", {{"model_type", "llama"}});
    WriteJson("quant_model_description.json", description);
    WriteTensors(file);
    return OpenCheckpoint(path());
  }

  std::vector<int8_t> codes;
  std::vector<float> scales;
  Json description = {{"version", "1.0.0"}, {"model_quant_type", "W8A8"}, {"metadata", Json::object()}};
};

std::vector<float> ValuesOf(const AscendFolder& folder, const char* strategy, StoredLinear* out = nullptr) {
  const auto checkpoint = folder.OpenIt();
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  if (!checkpoint.ok()) return {};
  EXPECT_EQ((*checkpoint)->format(), "ascend_v1");
  const auto stored = (*checkpoint)->GetLinear(kModule);
  EXPECT_TRUE(stored.ok()) << stored.status();
  if (!stored.ok()) return {};
  EXPECT_EQ(stored->spec.strategy, strategy);
  const auto values = Dequantize(*stored);
  EXPECT_TRUE(values.ok()) << values.status();
  if (!values.ok()) return {};
  static std::shared_ptr<Checkpoint> kept;
  kept = *checkpoint;
  if (out != nullptr) *out = *stored;
  return {values->as<float>(), values->as<float>() + stored->N * stored->K};
}

TEST(AscendV1, EightBitWeights) {
  for (const auto& [type, strategy] : {std::pair("W8A16", "int8_w8a16"), std::pair("W8A8_DYNAMIC", "int8_w8a8")}) {
    for (const float offset : {0.0f, -43.0f}) {
      AscendFolder folder;
      folder.PutModule8(type, std::vector<float>(N, offset));
      const std::vector<float> values = ValuesOf(folder, strategy);
      ASSERT_EQ(values.size(), static_cast<size_t>(N * K));
      for (int64_t i = 0; i < N * K; ++i) {
        const size_t at = static_cast<size_t>(i);
        ASSERT_EQ(values[at], (static_cast<float>(folder.codes[at]) - offset) * folder.scales[at / K]) << type;
      }
    }
  }
}

// quant_bias = round(bias / deq - sum(code) * input_offset); deq as f32 or as its bits in an int64.
TEST(AscendV1, StaticActivationsGiveScaleAndBiasBack) {
  for (const bool wide : {false, true}) {
    for (const bool biased : {false, true}) {
      AscendFolder folder;
      const float input_scale = 0.25f, input_offset = -8;
      std::vector<float> deq;
      std::vector<int32_t> bias;
      std::vector<int64_t> bits;
      for (int64_t n = 0; n < N; ++n) {
        const float scale = std::ldexp(1.0f, -4 - static_cast<int>(n));  // the division is exact
        deq.push_back(input_scale * scale);
        int64_t sum = 0;
        for (int64_t k = 0; k < K; ++k) sum += folder.codes[static_cast<size_t>(n * K + k)];
        bias.push_back(static_cast<int32_t>((biased ? 1000 + n : 0) - sum * static_cast<int64_t>(input_offset)));
        uint32_t word;
        std::memcpy(&word, &deq.back(), 4);
        bits.push_back(word);
      }
      folder.Put(kModule + ".weight", DType::kI8, {N, K}, folder.codes.data(), folder.codes.size());
      folder.PutFloats(kModule + ".input_scale", {input_scale}, {1});
      folder.PutFloats(kModule + ".input_offset", {input_offset}, {1});
      folder.Put(kModule + ".quant_bias", DType::kI32, {N}, bias.data(), bias.size() * 4);
      if (wide) {
        folder.Put(kModule + ".deq_scale", DType::kI64, {N}, bits.data(), bits.size() * 8);
      } else {
        folder.PutFloats(kModule + ".deq_scale", deq, {N});
      }
      for (const char* name : {".weight", ".input_scale", ".input_offset", ".quant_bias", ".deq_scale"}) {
        folder.description[kModule + name] = "W8A8";
      }
      StoredLinear stored;
      const std::vector<float> values = ValuesOf(folder, "int8_w8a8", &stored);
      ASSERT_EQ(values.size(), static_cast<size_t>(N * K));
      for (int64_t i = 0; i < N * K; ++i) {
        ASSERT_EQ(values[static_cast<size_t>(i)], static_cast<float>(folder.codes[static_cast<size_t>(i)]) *
                                                      std::ldexp(1.0f, -4 - static_cast<int>(i / K)));
      }
      EXPECT_EQ(*stored.tensors.at("input_scale").as<float>(), input_scale);
      EXPECT_EQ(*stored.tensors.at("input_zero_point").as<int8_t>(), -8);
      ASSERT_EQ(!stored.bias.empty(), biased);
      for (int64_t n = 0; biased && n < N; ++n) {
        EXPECT_EQ(stored.bias.as<float>()[n], static_cast<float>(1000 + n) * deq[static_cast<size_t>(n)]);
      }
    }
  }
}

// Rows 2j lie in the low nibbles of row j, rows 2j + 1 in the high ones, two's complement.
TEST(AscendV1, FourBitRowsShareBytes) {
  AscendFolder folder;
  std::vector<int8_t> codes;
  for (int64_t i = 0; i < N * K; ++i) codes.push_back(static_cast<int8_t>((i * 7) % 16 - 8));
  std::vector<uint8_t> bytes(static_cast<size_t>(N / 2 * K));
  for (int64_t j = 0; j < N / 2; ++j) {
    for (int64_t k = 0; k < K; ++k) {
      const int low = codes[static_cast<size_t>(2 * j * K + k)], high = codes[static_cast<size_t>((2 * j + 1) * K + k)];
      bytes[static_cast<size_t>(j * K + k)] = static_cast<uint8_t>((low & 15) | ((high & 15) << 4));
    }
  }
  folder.Put(kModule + ".weight", DType::kI8, {N / 2, K}, bytes.data(), bytes.size());
  folder.PutFloats(kModule + ".weight_scale", folder.scales, {N, 1});
  folder.PutFloats(kModule + ".weight_offset", std::vector<float>(N, 0), {N, 1});
  for (const char* name : {".weight", ".weight_scale", ".weight_offset"}) {
    folder.description[kModule + name] = "W4A8_DYNAMIC";
  }
  const std::vector<float> values = ValuesOf(folder, "int4_w4a8");
  ASSERT_EQ(values.size(), static_cast<size_t>(N * K));
  for (int64_t i = 0; i < N * K; ++i) {
    const size_t at = static_cast<size_t>(i);
    ASSERT_EQ(values[at], static_cast<float>(codes[at]) * folder.scales[at / K]);
  }
}

TEST(AscendV1, FloatsKvScalesAndOtherFileNames) {
  AscendFolder folder;
  const std::string plain = "model.layers.0.self_attn.v_proj";
  folder.PutFloats(plain + ".weight", {1, 2, 3, 4}, {2, 2});
  folder.PutFloats(kModule + ".kv_cache_scale", {0.5f, 0.25f}, {2});
  folder.PutFloats(kModule + ".kv_cache_offset", {0, -3}, {2});
  folder.description[plain + ".weight"] = "FLOAT";
  folder.description[kModule + ".kv_cache_scale"] = "W8A8";  // as older exports call C8
  folder.description[kModule + ".kv_cache_offset"] = "C8";
  folder.description["kv_cache_type"] = "C8";
  const auto checkpoint = folder.OpenIt("quant_model_weight_w8a8.safetensors");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->GetLinear(plain)->spec.strategy, "f32");
  const auto scale = (*checkpoint)->GetTensor(kModule + ".kv_cache_scale");
  ASSERT_TRUE(scale.ok());
  float second = 0;  // tensors of a file need not be aligned
  std::memcpy(&second, scale->as<char>() + sizeof(float), sizeof(float));
  EXPECT_EQ(second, 0.25f);
}

TEST(AscendV1, ContradictionsAreRefusedByTensorAndRule) {
  struct Case {
    const char* what;
    std::function<void(AscendFolder&)> damage;
    const char* says;
  };
  const std::vector<char> zeros(4096);
  const Case cases[] = {
      {"a named tensor is absent", [](AscendFolder& f) { f.description["model.layers.9.mlp.up_proj.weight"] = "W8A8"; },
       "up_proj.weight: is W8A8"},
      {"a scale is absent", [](AscendFolder& f) { f.Drop(kModule + ".weight_scale"); }, "weight_scale"},
      {"a weight has no type", [](AscendFolder& f) { f.description.erase(kModule + ".weight"); }, "has no type"},
      {"an unknown type", [](AscendFolder& f) { f.description[kModule + ".weight"] = "W4A4_MXFP4"; }, "W4A4_MXFP4"},
      {"nothing is described", [](AscendFolder& f) { f.description = Json::object(); }, "at least one tensor"},
      {"floats under an integer type",
       [&](AscendFolder& f) {
         f.Put(kModule + ".weight", DType::kF32, {N, K}, zeros.data(), N * K * 4);
       },
       "must be I8 [N, K]"},
      {"integers under FLOAT", [](AscendFolder& f) { f.description[kModule + ".weight"] = "FLOAT"; }, "must be F32"},
      {"scales of other rows",
       [&](AscendFolder& f) {
         f.Put(kModule + ".weight_scale", DType::kF32, {N - 1, 1}, zeros.data(), (N - 1) * 4);
       },
       "weight_scale: must be [6, G]"},
      {"an offset that is no integer",
       [](AscendFolder& f) {
         f.PutFloats(kModule + ".weight_offset", std::vector<float>(N, 0.5f), {N, 1});
       },
       "offsets must be whole"},
      {"an offset out of range",
       [](AscendFolder& f) {
         f.PutFloats(kModule + ".weight_offset", std::vector<float>(N, 200), {N, 1});
       },
       "offsets must be whole"},
      {"an offset that is not finite",
       [](AscendFolder& f) {
         f.PutFloats(kModule + ".weight_offset", std::vector<float>(N, NAN), {N, 1});
       },
       "must be finite"},
      {"static without its scales", [](AscendFolder& f) { f.description[kModule + ".weight"] = "W8A8"; },
       "input_scale"},
  };
  for (const Case& c : cases) {
    AscendFolder folder;
    folder.PutModule8("W8A8_DYNAMIC", std::vector<float>(N, 0));
    c.damage(folder);
    const auto checkpoint = folder.OpenIt();
    absl::Status status = checkpoint.status();
    if (checkpoint.ok()) {
      const auto stored = (*checkpoint)->GetLinear(kModule);
      status = stored.ok() ? Dequantize(*stored).status() : stored.status();
    }
    EXPECT_FALSE(status.ok()) << c.what;
    EXPECT_NE(std::string(status.message()).find(c.says), std::string::npos) << c.what << ": " << status;
  }
}

}  // namespace
}  // namespace sage
