// Writing AscendV1: types, formulas and file names are msModelSlim's, and what was written reads back to the same
// values.
#include "engine/runtime/ascend_export.h"

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"
#include "tests/unit/runtime/tiny_model.h"

namespace sage::ascend_export_test {
namespace {

absl::StatusOr<ConvertResult> Convert(const std::string& from, const std::string& format, const std::string& to) {
  ThreadPool threads(2);
  return ConvertArtifact({from, format, to}, threads, {}, nullptr);
}

std::string Checkpoint(const std::string& name) {
  return std::string(SAGE_SOURCE_DIR) + "/../shared/data/checkpoints/" + name;
}

Json Description(const std::string& folder) {
  const auto text = ReadFile(folder + "/" + kAscendDescription);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.ok() ? *ParseJson(*text, "description") : Json();
}

TEST(AscendExport, TypesComeFromBitsAndActivations) {
  struct Case {
    const char *weight, *activation, *type, *strategy;
  };
  for (const Case& c : {Case{"int8", "int8", "W8A8_DYNAMIC", "int8_w8a8"}, Case{"int8", "", "W8A16", "int8_w8a16"},
                        Case{"int4", "int8", "W4A8_DYNAMIC", "int4_w4a8"}}) {
    const ScratchFolder scratch;
    ASSERT_TRUE(MakeDirectories(scratch / "model").ok());
    ASSERT_TRUE(WriteTinyModel(scratch / "model", {}));
    CalibrationSpec spec = StoriesSpec(scratch);
    spec.model = scratch / "model";
    spec.weight_dtype = c.weight;
    spec.activation_dtype = c.activation;
    ThreadPool threads(2);
    const auto made = CalibrateModel(spec, threads, {}, nullptr);
    ASSERT_TRUE(made.ok()) << made.status();
    const auto result = Convert(spec.output, "ascend_v1", scratch / "out");
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->lossless) << result->max_abs_difference;
    const Json description = Description(scratch / "out");
    EXPECT_EQ(description["model.layers.0.mlp.up_proj.weight"], c.type);
    EXPECT_EQ(description["model.layers.0.mlp.up_proj.weight_scale"], c.type);
    EXPECT_EQ(description["model.layers.0.input_layernorm.weight"], "FLOAT");
    EXPECT_EQ(description["model_quant_type"], c.type);
    EXPECT_FALSE(description.contains("kv_cache_type"));
    EXPECT_EQ(description.contains("model.layers.0.mlp.up_proj.scale_bias"), c.weight == std::string("int4"));
    const auto source = ArtifactSource::Open(scratch / "out");
    ASSERT_TRUE(source.ok()) << source.status();
    EXPECT_EQ((*source)->checkpoint().format(), "ascend_v1");
    EXPECT_EQ((*source)->Stored((*source)->linears().front())->spec.strategy, c.strategy);
    EXPECT_FALSE((*source)->checkpoint().config().contains("quantization_config"));
    const auto back = Convert(scratch / "out", "compressed_tensors", scratch / "back");
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_TRUE(back->lossless);
    const auto verified = VerifyArtifactFolder(scratch / "out", {});
    ASSERT_TRUE(verified.ok()) << verified.status();
    EXPECT_EQ(*verified, result->tensors);
  }
}

TEST(AscendExport, ScaleBiasIsEightTimesTheSumOfTheWeights) {
  const ScratchFolder scratch;
  ASSERT_TRUE(MakeDirectories(scratch / "model").ok());
  ASSERT_TRUE(WriteTinyModel(scratch / "model", {}));
  CalibrationSpec spec = StoriesSpec(scratch);
  spec.model = scratch / "model";
  spec.weight_dtype = "int4";
  spec.activation_dtype = "int8";
  ThreadPool threads(2);
  ASSERT_TRUE(CalibrateModel(spec, threads, {}, nullptr).ok());
  ASSERT_TRUE(Convert(spec.output, "ascend_v1", scratch / "out").ok());
  const auto source = ArtifactSource::Open(scratch / "out");
  ASSERT_TRUE(source.ok());
  for (const LinearSlot& slot : (*source)->linears()) {
    const auto bias = (*source)->checkpoint().GetTensor(slot.name + ".scale_bias");
    ASSERT_TRUE(bias.ok()) << slot.name;
    const int64_t parts = slot.kind == "o_proj" || slot.kind == "down_proj" ? 16 : 1;
    ASSERT_EQ(bias->shape, (Shape{slot.N, parts})) << slot.name;
    const auto weight = (*source)->Weight(slot, threads);
    for (int64_t i = 0; i < slot.N * parts; ++i) {
      double sum = 0;
      const int64_t width = slot.K / parts;
      for (int64_t k = 0; k < width; ++k) sum += weight->as<float>()[i * width + k];
      ASSERT_NEAR(bias->as<float>()[i], 8 * sum, 1e-4) << slot.name << i;
    }
  }
}

TEST(AscendExport, RealCheckpoints) {
  if (!IsDirectory(Checkpoint(""))) GTEST_SKIP() << "no shared checkpoints";
  for (const char* name : {"ct-int8-w8a8-dynamic", "gptq-w8-g64-sym", "ct-pack-w8-channel"}) {
    const ScratchFolder scratch;
    const auto result = Convert(Checkpoint(name), "ascend_v1", scratch / "out");
    ASSERT_TRUE(result.ok()) << name << ": " << result.status();
    EXPECT_TRUE(result->lossless) << name << " " << result->max_abs_difference;
  }
  // Static: scales go through deq_scale / input_scale, so the last bit may move.
  const ScratchFolder scratch;
  const auto fixed = Convert(Checkpoint("ct-int8-w8a8-static-asym"), "ascend_v1", scratch / "out");
  ASSERT_TRUE(fixed.ok()) << fixed.status();
  EXPECT_LT(fixed->max_abs_difference, 1e-6);
  EXPECT_EQ(Description(scratch / "out")["model_quant_type"], "W8A8");
  for (const char* name : {"ct-w4a8-int", "gptq-w4-g64-sym", "ct-fp8-dynamic", "bnb-nf4"}) {
    const auto refused = Convert(Checkpoint(name), "ascend_v1", scratch / name);
    EXPECT_EQ(GetErrorReason(refused.status()).reason, "UNSUPPORTED_OUTPUT_FORMAT") << name << refused.status();
    EXPECT_FALSE(std::filesystem::exists(scratch / name));
  }
}

TEST(AscendExport, ScalesOfTheKvCacheAreC8) {
  const ScratchFolder scratch;
  ASSERT_TRUE(MakeDirectories(scratch / "model").ok());
  std::vector<float> scale(16, 0.25f), offset(16, 0.0f);
  std::vector<NamedTensor> more;
  for (const char* side : {"k_proj", "v_proj"}) {
    const std::string module = std::string("model.layers.0.self_attn.") + side;
    more.push_back(*ConvertFloats(module + ".kv_cache_scale", scale.data(), {16}, DType::kF32));
    more.push_back(*ConvertFloats(module + ".kv_cache_offset", offset.data(), {16}, DType::kF32));
  }
  ASSERT_TRUE(WriteTinyModel(scratch / "model", {}, std::move(more)));
  const auto result = Convert(scratch / "model", "ascend_v1", scratch / "out");
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->lossless);
  const Json description = Description(scratch / "out");
  EXPECT_EQ(description["kv_cache_type"], "C8");
  EXPECT_EQ(description["kv_quant_type"], "C8");
  EXPECT_EQ(description["version"], "1.0.0");
  EXPECT_EQ(description["model.layers.0.self_attn.k_proj.kv_cache_scale"], "C8");
  EXPECT_EQ(description["model.layers.0.self_attn.v_proj.kv_cache_offset"], "C8");
  EXPECT_EQ(description["model.layers.0.self_attn.k_proj.weight"], "FLOAT");
  EXPECT_TRUE(FileExists(scratch / "out/quant_model_weights.safetensors.index.json"));
  EXPECT_TRUE(FileExists(scratch / "out/quant_model_weights-00001-of-00002.safetensors"));
  const auto source = ArtifactSource::Open(scratch / "out");
  ASSERT_TRUE(source.ok()) << source.status();
  const auto back = (*source)->checkpoint().GetTensor("model.layers.0.self_attn.v_proj.kv_cache_scale");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->as<float>()[15], 0.25f);
}

}  // namespace
}  // namespace sage::ascend_export_test
