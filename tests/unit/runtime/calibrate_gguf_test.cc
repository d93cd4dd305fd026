// Calibrations whose artifact is a GGUF: exclude and override choose each layer's block type, every other word acts or
// is refused by name, and the answer lists every layer with its type and error.
#include <functional>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"
#include "engine/runtime/artifact_source.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"
#include "tests/unit/runtime/tiny_model.h"

namespace sage::calibrate_gguf_test {
namespace {

class CalibrateGgufTest : public TinyModelTest {
 protected:
  CalibrateGgufTest() : TinyModelTest(256, 256, 64) {}
  CalibrationSpec Spec(const std::string& format) {
    CalibrationSpec spec;
    spec.model = scratch_ / "model";
    spec.format = format;
    spec.output = scratch_ / ("artifact-" + std::to_string(++made_));
    spec.work_dir = scratch_ / "work";
    return spec;
  }
  // Scheme and error of each layer by its last name.
  std::map<std::string, std::pair<std::string, double>> Layers(const CalibrationSpec& spec) {
    const auto made = Run(spec);
    EXPECT_TRUE(made.ok()) << made.status();
    std::map<std::string, std::pair<std::string, double>> out;
    if (!made.ok()) return out;
    for (const LayerResult& layer : made->layers) {
      out[layer.name.substr(layer.name.rfind('.') + 1)] = {layer.scheme, layer.error};
      EXPECT_GT(layer.bytes, 0) << layer.name;
      EXPECT_EQ(layer.sha256.size(), 64u) << layer.name;
    }
    return out;
  }
  std::string Reason(const std::string& format, const std::function<void(CalibrationSpec&)>& change) {
    CalibrationSpec spec = Spec(format);
    change(spec);
    return GetErrorReason(Run(spec).status()).reason;
  }

  int made_ = 0;
};

TEST_F(CalibrateGgufTest, KTypesListEveryLayer) {
  const auto layers = Layers(Spec("gguf_q4_k"));
  ASSERT_EQ(layers.size(), 7u);
  for (const auto& [name, layer] : layers) {
    EXPECT_EQ(layer.first, "gguf_q4_k") << name;
    EXPECT_GT(layer.second, 0.001) << name;
    EXPECT_LT(layer.second, 0.2) << name;
  }
}

TEST_F(CalibrateGgufTest, ExcludedLayersKeepTheirFloats) {
  for (const char* format : {"gguf_q4_k", "gguf_q4_k_m", "gguf_q6_k", "gguf_q4_0", "gguf_q8_0"}) {
    CalibrationSpec spec = Spec(format);
    if (std::string(format) == "gguf_q8_0") spec.weight_dtype = "int8";
    spec.exclude = {"*.down_proj"};
    const auto layers = Layers(spec);
    EXPECT_EQ(layers.at("down_proj").first, "gguf_bf16") << format;
    EXPECT_EQ(layers.at("down_proj").second, 0.0) << format;
    EXPECT_NE(layers.at("up_proj").first, "gguf_bf16") << format;
    EXPECT_GT(layers.at("up_proj").second, 0.0) << format;
  }
}

TEST_F(CalibrateGgufTest, OverridesChooseTheBlockType) {
  CalibrationSpec k = Spec("gguf_q4_k");
  k.overrides = {"*.down_proj=bits:6", "*.o_proj=bits:8", "*.q_proj=exclude:true"};
  auto layers = Layers(k);
  EXPECT_EQ(layers.at("down_proj").first, "gguf_q6_k");
  EXPECT_EQ(layers.at("o_proj").first, "gguf_q8_0");
  EXPECT_EQ(layers.at("q_proj").first, "gguf_bf16");
  EXPECT_EQ(layers.at("v_proj").first, "gguf_q4_k");
  CalibrationSpec whole = Spec("gguf_q4_0");
  whole.overrides = {"*.down_proj=bits:8", "*.o_proj=symmetric:false"};
  layers = Layers(whole);
  EXPECT_EQ(layers.at("down_proj").first, "gguf_q8_0");
  EXPECT_EQ(layers.at("o_proj").first, "gguf_q4_1");
  EXPECT_EQ(layers.at("up_proj").first, "gguf_q4_0");
  // The file holds what the answer says: eight bits are a sixteenth of four bits' error.
  EXPECT_LT(layers.at("down_proj").second, layers.at("up_proj").second / 8);
  ThreadPool threads(2);
  const auto before = ArtifactSource::Open(scratch_ / "model"), after = ArtifactSource::Open(whole.output);
  ASSERT_TRUE(before.ok() && after.ok());
  for (const LinearSlot& slot : (*after)->ShardLinears(0)) {
    const auto stored = (*after)->Stored(slot);
    ASSERT_TRUE(stored.ok());
    EXPECT_EQ(stored->spec.strategy, layers.at(slot.kind).first) << slot.name;
  }
}

// The same request finds its artifact, another does not take it over.
TEST_F(CalibrateGgufTest, AnotherRequestIsNotAnsweredByWhatIsThere) {
  CalibrationSpec spec = Spec("gguf_q4_k");
  ASSERT_TRUE(Run(spec).ok());
  const auto again = Run(spec);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->resumed);
  EXPECT_EQ(again->layers.size(), 7u);
  spec.exclude = {"*.down_proj"};
  EXPECT_EQ(GetErrorReason(Run(spec).status()).reason, "ARTIFACT_EXISTS");
}

TEST_F(CalibrateGgufTest, WordsThatATypeCannotHonourAreRefused) {
  const std::pair<const char*, std::function<void(CalibrationSpec&)>> words[] = {
      {"weight_dtype", [](CalibrationSpec& s) { s.weight_dtype = "int3"; }},
      {"activation_dtype", [](CalibrationSpec& s) { s.activation_dtype = "int8"; }},
      {"group_size", [](CalibrationSpec& s) { s.group_size = 64; }},
      {"asymmetric", [](CalibrationSpec& s) { s.asymmetric = true; }},
      {"clip_ratio", [](CalibrationSpec& s) { s.clip_ratio = 0.2; }},
      {"scale_precision", [](CalibrationSpec& s) { s.scale_precision = "bf16"; }},
      {"tensor_parallel", [](CalibrationSpec& s) { s.tensor_parallel = 2; }},
      {"kv_quantization", [](CalibrationSpec& s) { s.kv_quantization = "fp8"; }},
      {"double_quant", [](CalibrationSpec& s) { s.double_quant = true; }}};
  for (const auto& [field, change] : words) {
    CalibrationSpec spec = Spec("gguf_q4_k");
    change(spec);
    const absl::Status status = Run(spec).status();
    EXPECT_EQ(GetErrorReason(status).reason, "FIELD_NOT_SUPPORTED") << field;
    EXPECT_EQ(status.message().find(field), 0u) << status;
  }
  EXPECT_EQ(Reason("gguf_q4_0", [](CalibrationSpec& s) { s.kv_quantization = "fp8"; }), "FIELD_NOT_SUPPORTED");
  for (const char* format : {"gguf_q4_k", "gguf_q4_0"}) {
    EXPECT_EQ(Reason(format, [](CalibrationSpec& s) { s.exclude = {"*.none"}; }), "PATTERN_MATCHES_NOTHING");
    EXPECT_EQ(Reason(format, [](CalibrationSpec& s) { s.overrides = {"*.none=bits:8"}; }), "PATTERN_MATCHES_NOTHING");
    EXPECT_EQ(Reason(format, [](CalibrationSpec& s) { s.overrides = {"*.o_proj=bits:3"}; }), "OVERRIDE_NOT_HELD");
    EXPECT_EQ(Reason(format, [](CalibrationSpec& s) { s.overrides = {"*.o_proj=bits:8,symmetric:false"}; }),
              "OVERRIDE_NOT_HELD");
  }
  EXPECT_EQ(Reason("gguf_f16", [](CalibrationSpec& s) { s.overrides = {"*.o_proj=bits:8"}; }), "OVERRIDE_NOT_HELD");
}

}  // namespace
}  // namespace sage::calibrate_gguf_test
