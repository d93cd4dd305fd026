// Conversions of what is more than weights: activations, several schemes in one folder, plans of the KV cache; and of
// zeros that other formats store otherwise.
#include "engine/runtime/convert_schemes.h"

#include <cstring>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"
#include "engine/runtime/kv_plan.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"
#include "tests/unit/runtime/tiny_model.h"

namespace sage::convert_schemes_test {
namespace {

std::string SharedCheckpoint(const std::string& name) {
  return std::string(SAGE_SOURCE_DIR) + "/../shared/data/checkpoints/" + name;
}

class ConvertSchemes : public TinyModelTest {
 protected:
  ConvertSchemes() : TinyModelTest(128, 128, 32) {}
  CalibrationSpec Spec() {
    CalibrationSpec spec;
    spec.model = scratch_ / "model";
    spec.group_size = 32;
    spec.scale_precision = "f16";
    spec.samples = 6;
    spec.sequence_length = 48;
    spec.work_dir = scratch_ / "work";
    spec.output = scratch_ / "artifact";
    return spec;
  }
  void Calibrate(const CalibrationSpec& spec) {
    const auto made = Run(spec);
    ASSERT_TRUE(made.ok()) << made.status();
  }
  absl::StatusOr<ConvertResult> Convert(const std::string& from, const std::string& format, const std::string& to) {
    ThreadPool threads(2);
    return ConvertArtifact({from, format, scratch_ / to, {}}, threads, {}, nullptr);
  }
  Json Config(const std::string& name) {
    return ParseJson(Slurp(scratch_ / (name + "/config.json")), "config")->at("quantization_config");
  }
  std::string Notes(const std::string& name) {
    const auto manifest = ReadManifest(scratch_ / name);
    return manifest.ok() ? DumpJson((*manifest)["conversion"]["notes"]) : "";
  }
  absl::StatusOr<KvChoice> KvOf(const std::string& path) {
    SAGE_ASSIGN_OR_RETURN(const std::shared_ptr<Checkpoint> checkpoint, OpenCheckpoint(path));
    SAGE_ASSIGN_OR_RETURN(const DecoderConfig config,
                          ParseModelConfig(checkpoint->config(), checkpoint->generation_config()));
    return ChooseKvPlan(*checkpoint, config, {"", "bf16", {}, {}, 0}, 16);
  }

};

// Static scales, zero points, groups of inputs: the config says what the tensors are, and both are read back.
TEST_F(ConvertSchemes, ActivationsTravel) {
  for (const char* name : {"ct-int8-w8a8-static-asym", "ct-int8-w8a8-dynamic", "ct-fp8-static", "ct-fp8-dynamic",
                           "ct-fp8-block-128", "ct-w4a8-int"}) {
    const std::string source = SharedCheckpoint(name);
    if (!IsDirectory(source)) GTEST_SKIP() << "no shared checkpoints";
    const auto made = Convert(source, "compressed_tensors", name);
    ASSERT_TRUE(made.ok()) << name << ": " << made.status();
    EXPECT_TRUE(made->lossless) << name;
    const Json before = ParseJson(Slurp(source + "/config.json"), "config")->at("quantization_config");
    const Json a = before["config_groups"]["group_0"]["input_activations"];
    const Json b = Config(name)["config_groups"]["group_0"]["input_activations"];
    for (const char* key : {"num_bits", "type", "symmetric", "strategy", "dynamic", "group_size"}) {
      EXPECT_EQ(a[key], b[key]) << name << " " << key;
    }
    const auto x = ArtifactSource::Open(source), y = ArtifactSource::Open(scratch_ / name);
    ASSERT_TRUE(x.ok() && y.ok());
    for (const LinearSlot& slot : (*x)->ShardLinears(0)) {
      const auto p = ActivationsOf(*(*x)->Stored(slot)), q = ActivationsOf(*(*y)->Stored(slot));
      ASSERT_TRUE(p.ok() && q.ok());
      EXPECT_TRUE(*p == *q) << slot.name;
      EXPECT_EQ(p->bits, 8);
    }
  }
}

TEST_F(ConvertSchemes, LostActivationsAreTold) {
  CalibrationSpec spec = Spec();
  spec.weight_dtype = spec.activation_dtype = "int8";
  spec.group_size = -1;
  Calibrate(spec);
  ASSERT_TRUE(Convert(spec.output, "f32", "f32").ok());
  EXPECT_NE(Notes("f32").find("8-bit activations are not kept"), std::string::npos) << Notes("f32");
}

// No zero is a zero of 8.
TEST_F(ConvertSchemes, SymmetricFourBitsBecomeAwq) {
  CalibrationSpec spec = Spec();
  Calibrate(spec);
  const auto made = Convert(spec.output, "awq", "awq");
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_TRUE(made->lossless);
  const auto written = OpenCheckpoint(scratch_ / "awq");
  ASSERT_TRUE(written.ok()) << written.status();
  const auto zeros = (*written)->GetLinear("model.layers.0.mlp.up_proj")->tensors.at("qzeros");
  for (int64_t i = 0; i < zeros.elements(); ++i) {
    uint32_t word;
    std::memcpy(&word, zeros.as<uint8_t>() + 4 * i, 4);
    EXPECT_EQ(word, 0x88888888u);
  }
  spec.format = "awq";
  spec.method = "mse";
  spec.output = scratch_ / "direct";
  Calibrate(spec);  // the same through a calibration
}

TEST_F(ConvertSchemes, ScaledZerosOfGemvFastAreRounded) {
  const std::string source = SharedCheckpoint("autoawq-gemv_fast-w4-g64");
  if (!IsDirectory(source)) GTEST_SKIP() << "no shared checkpoints";
  for (const char* format : {"awq", "compressed_tensors"}) {
    const auto made = Convert(source, format, format);
    ASSERT_TRUE(made.ok()) << format << ": " << made.status();
    EXPECT_FALSE(made->lossless);  // the file's zeros are products rounded to f16
    EXPECT_GT(made->max_abs_difference, 0);
    EXPECT_LT(made->max_abs_difference, 1e-3);
    EXPECT_NE(Notes(format).find("zeros of AWQ GEMV_FAST"), std::string::npos);
  }
}

TEST_F(ConvertSchemes, SeveralSchemesOfOneFolder) {
  CalibrationSpec spec = Spec();
  spec.overrides = {"*.down_proj=bits:8", "*.o_proj=group_size:64", "*.v_proj=exclude:true"};
  Calibrate(spec);
  for (const char* format : {"gptq", "compressed_tensors"}) {
    const auto made = Convert(spec.output, format, format);
    ASSERT_TRUE(made.ok()) << format << ": " << made.status();
    EXPECT_TRUE(made->lossless) << format << made->max_abs_difference;
  }
  const auto back = Convert(scratch_ / "gptq", "compressed_tensors", "back");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_TRUE(back->lossless);
  const auto source = ArtifactSource::Open(scratch_ / "back");
  ASSERT_TRUE(source.ok()) << source.status();
  for (const LinearSlot& slot : (*source)->ShardLinears(0)) {
    const auto stored = (*source)->Stored(slot);
    ASSERT_TRUE(stored.ok());
    EXPECT_EQ(stored->spec.strategy, slot.kind == "down_proj" ? "int8_w8a16"
                                     : slot.kind == "v_proj"  ? "bf16"
                                                              : "int4_w4a16")
        << slot.name;
    const int size = slot.kind == "o_proj" ? 64 : slot.kind == "v_proj" ? -1 : 32;
    EXPECT_EQ(stored->spec.group_size, size) << slot.name;
  }
  const auto refused = Convert(spec.output, "awq", "awq");
  EXPECT_FALSE(refused.ok());
  EXPECT_FALSE(IsDirectory(scratch_ / "awq"));
  spec.overrides = {"*.o_proj=group_size:64"};  // both are AWQ's, but its config has one group size
  spec.output = scratch_ / "sizes";
  Calibrate(spec);
  EXPECT_EQ(GetErrorReason(Convert(spec.output, "awq", "awq").status()).reason, "MIXED_SCHEMES_NOT_HELD");
}

// Strategy, scales, layers of 16 bits and sinks: an engine takes the same plan from the converted folder.
TEST_F(ConvertSchemes, PlansOfTheKvCacheTravel) {
  CalibrationSpec spec = Spec();
  spec.dataset = scratch_ / "ids.jsonl";
  for (const char* kv : {"fp8", "int8", "int8_per_channel"}) {
    for (const bool fixed : {false, true}) {
      const std::string name = std::string(kv) + (fixed ? "-static" : "-dynamic");
      SCOPED_TRACE(name);
      spec.kv_quantization = kv;
      spec.kv_scales = fixed ? "static" : "dynamic";
      spec.kv_sink_tokens = 4;
      spec.output = scratch_ / name;
      Calibrate(spec);
      const auto want = KvOf(spec.output);
      ASSERT_TRUE(want.ok()) << want.status();
      for (const char* format : {"gptq", "compressed_tensors"}) {
        const auto made = Convert(spec.output, format, name + "-" + format);
        ASSERT_TRUE(made.ok()) << made.status();
        const auto got = KvOf(scratch_ / (name + "-" + format));
        ASSERT_TRUE(got.ok()) << got.status();
        EXPECT_EQ(got->plan.layers[0].strategy, want->plan.layers[0].strategy);
        EXPECT_EQ(got->calibrated, want->calibrated);
        EXPECT_EQ(got->plan.sink_pages, want->plan.sink_pages);
        EXPECT_EQ(got->wide, want->wide);
      }
      ASSERT_TRUE(Convert(spec.output, "f32", name + "-f32").ok());
      EXPECT_NE(Notes(name + "-f32").find("scales of the KV cache are not kept"), std::string::npos);
    }
  }
}

TEST_F(ConvertSchemes, AFolderWhoseKvCacheAloneIsQuantized) {
  CalibrationSpec spec = Spec();
  spec.weight_dtype = "none";
  spec.group_size = 0;
  spec.scale_precision.clear();
  spec.dataset = scratch_ / "ids.jsonl";
  spec.kv_quantization = "fp8";
  Calibrate(spec);
  const auto made = Convert(spec.output, "compressed_tensors", "ct");
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_TRUE(made->lossless);
  EXPECT_EQ(Config("ct")["kv_cache_scheme"]["type"], "float");
  const auto got = KvOf(scratch_ / "ct");
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_TRUE(got->calibrated);
  EXPECT_EQ(GetErrorReason(Convert(spec.output, "gptq", "gptq").status()).reason, "NOTHING_QUANTIZED");
}

}  // namespace
}  // namespace sage::convert_schemes_test
