// There and back: models of random shapes go from format to format and keep every value, or the refusal says why.
#include <cstring>
#include <functional>
#include <random>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"
#include "tests/unit/runtime/tiny_model.h"

namespace sage::convert_pairs_test {
namespace {

struct Start {
  const char *weight, *activation;
  int group_size;
  bool asymmetric;
  const char* scale;
  std::vector<const char*> route;  // formats, each made from the one before
};

TEST(ConvertPairs, RandomShapesGoThereAndBack) {
  const Start starts[] = {
      {"int4", "", 32, false, "f16", {"gptq", "compressed_tensors", "gguf", "f32"}},
      {"int4", "", 32, true, "f16", {"awq", "compressed_tensors", "gguf", "f32"}},
      {"int8", "", 32, false, "f16", {"gptq", "compressed_tensors", "gguf_q8_0", "f32"}},
      {"int8", "", -1, false, "bf16", {"ascend_v1", "compressed_tensors", "gguf_q8_0", "gguf", "f32"}},
      {"int8", "int8", -1, false, "f32", {"ascend_v1", "compressed_tensors", "gguf", "f32"}},
      {"int4", "int8", -1, false, "f32", {"ascend_v1", "compressed_tensors", "gguf", "f32"}},
      {"fp8", "", 0, false, "", {"compressed_tensors", "gguf", "f32"}},
      {"nf4", "", 0, false, "", {"bitsandbytes", "gguf", "f32"}},
      {"bnb_int8", "", 0, false, "", {"bitsandbytes", "gguf", "f32"}},
  };
  std::mt19937 random(11);
  for (const Start& start : starts) {
    const ScratchFolder scratch;
    TinySizes sizes;
    sizes.V = 30 + static_cast<int64_t>(random() % 40);
    sizes.hidden = 32 * (1 + static_cast<int64_t>(random() % 4));
    sizes.ffn = 32 * (1 + static_cast<int64_t>(random() % 6));
    sizes.D = 32;
    sizes.KH = 1 + static_cast<int>(random() % 2);
    sizes.H = sizes.KH * (1 + static_cast<int>(random() % 3));
    const std::string what = std::string(start.weight) + " " + start.activation + " hidden " +
                             std::to_string(sizes.hidden) + " ffn " + std::to_string(sizes.ffn) + " heads " +
                             std::to_string(sizes.H) + "/" + std::to_string(sizes.KH);
    ASSERT_TRUE(MakeDirectories(scratch / "model").ok());
    ASSERT_TRUE(WriteTinyModel(scratch / "model", sizes)) << what;
    CalibrationSpec spec = StoriesSpec(scratch);
    spec.model = scratch / "model";
    spec.weight_dtype = start.weight;
    spec.activation_dtype = start.activation;
    spec.group_size = start.group_size;
    spec.asymmetric = start.asymmetric;
    spec.scale_precision = start.scale;
    ThreadPool threads(2);
    const auto made = CalibrateModel(spec, threads, {}, nullptr);
    ASSERT_TRUE(made.ok()) << what << ": " << made.status();
    std::string from = spec.output;
    for (size_t i = 0; i < start.route.size(); ++i) {
      const std::string to = scratch / std::to_string(i);
      const auto result = ConvertArtifact({from, start.route[i], to}, threads, {}, nullptr);
      ASSERT_TRUE(result.ok()) << what << " to " << start.route[i] << ": " << result.status();
      EXPECT_TRUE(result->lossless) << what << " to " << start.route[i] << " " << result->max_abs_difference;
      EXPECT_TRUE(VerifyArtifactFolder(to, {}).ok());
      from = to;
    }
    const auto before = ArtifactSource::Open(spec.output), after = ArtifactSource::Open(from);
    ASSERT_TRUE(before.ok() && after.ok());
    for (const LinearSlot& slot : (*before)->linears()) {
      const auto a = (*before)->Weight(slot, threads), b = (*after)->Weight(slot, threads);
      ASSERT_TRUE(a.ok() && b.ok());
      EXPECT_EQ(std::memcmp(a->as<float>(), b->as<float>(), static_cast<size_t>(slot.N * slot.K) * 4), 0) << slot.name;
    }
  }
}

// Scales of the KV cache travel with quantized layers and their scheme; where they have no place, that is said.
TEST(ConvertPairs, ScalesOfTheKvCache) {
  const std::string source = std::string(SAGE_SOURCE_DIR) + "/../shared/data/checkpoints/ct-kv-fp8-w4";
  if (!IsDirectory(source)) GTEST_SKIP() << "no shared checkpoints";
  const ScratchFolder scratch;
  ThreadPool threads(2);
  const auto kept = ConvertArtifact({source, "compressed_tensors", scratch / "ct"}, threads, {}, nullptr);
  ASSERT_TRUE(kept.ok()) << kept.status();
  const auto a = ArtifactSource::Open(source), b = ArtifactSource::Open(scratch / "ct");
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ((*a)->checkpoint().config()["quantization_config"]["kv_cache_scheme"],
            (*b)->checkpoint().config()["quantization_config"]["kv_cache_scheme"]);
  for (const char* name : {"model.layers.0.self_attn.k_scale", "model.layers.1.self_attn.v_scale"}) {
    const auto x = (*a)->checkpoint().GetTensor(name), y = (*b)->checkpoint().GetTensor(name);
    ASSERT_TRUE(x.ok() && y.ok()) << name;
    EXPECT_EQ(std::memcmp(x->data, y->data, x->bytes), 0) << name;
  }
  ASSERT_TRUE(ConvertArtifact({source, "gguf", scratch / "gguf"}, threads, {}, nullptr).ok());
  const auto manifest = ReadManifest(scratch / "gguf");
  ASSERT_TRUE(manifest.ok());
  EXPECT_NE(DumpJson((*manifest)["conversion"]["notes"]).find("scales of the KV cache are not kept"),
            std::string::npos);
}

// A calibrated GGUF is the calibrated integers, whatever folder they went through.
TEST(ConvertPairs, CalibratedGgufKeepsTheCodesOfItsMethod) {
  const ScratchFolder scratch;
  TinySizes sizes;
  sizes.hidden = 64;
  ASSERT_TRUE(MakeDirectories(scratch / "model").ok());
  ASSERT_TRUE(WriteTinyModel(scratch / "model", sizes));
  CalibrationSpec spec = StoriesSpec(scratch);
  spec.model = scratch / "model";
  spec.weight_dtype = "int4";
  spec.group_size = 0;
  spec.format = "gguf_q4_0";
  spec.method = "mse";
  ThreadPool threads(2);
  const auto made = CalibrateModel(spec, threads, {}, nullptr);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->format, "gguf");
  EXPECT_EQ(made->quantization, "gguf_q4_0");
  EXPECT_DOUBLE_EQ(made->bits_per_weight, 4.5);
  EXPECT_FALSE(made->layers.empty());
  EXPECT_FALSE(std::filesystem::exists(spec.output + ".staged"));
  CalibrationSpec plain = spec;
  plain.format = "";
  plain.group_size = 32;
  plain.scale_precision = "f16";
  plain.output = scratch / "plain";
  ASSERT_TRUE(CalibrateModel(plain, threads, {}, nullptr).ok());
  const auto a = ArtifactSource::Open(spec.output), b = ArtifactSource::Open(plain.output);
  ASSERT_TRUE(a.ok() && b.ok());
  for (const LinearSlot& slot : (*a)->linears()) {
    EXPECT_EQ((*a)->Stored(slot)->spec.strategy, "gguf_q4_0");
    const auto x = (*a)->Weight(slot, threads), y = (*b)->Weight(slot, threads);
    EXPECT_EQ(std::memcmp(x->as<float>(), y->as<float>(), static_cast<size_t>(slot.N * slot.K) * 4), 0) << slot.name;
  }
  const auto again = CalibrateModel(spec, threads, {}, nullptr);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->resumed);
  EXPECT_EQ(again->bits_per_weight, made->bits_per_weight);
}

// A type that takes its scales from plain weights has no calibration whose hash would tell: the source's does.
TEST(ConvertPairs, AGgufOfAnotherModelIsNotTheAnswer) {
  const ScratchFolder scratch;
  CalibrationSpec spec = StoriesSpec(scratch);
  spec.weight_dtype = "int4";
  spec.group_size = 0;
  spec.format = "gguf_q4_k";
  ThreadPool threads(2);
  ASSERT_TRUE(CalibrateModel(spec, threads, {}, nullptr).ok());
  const auto again = CalibrateModel(spec, threads, {}, nullptr);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->resumed);
  TinySizes sizes;
  ASSERT_TRUE(MakeDirectories(scratch / "model").ok());
  ASSERT_TRUE(WriteTinyModel(scratch / "model", sizes));
  spec.model = scratch / "model";
  EXPECT_EQ(GetErrorReason(CalibrateModel(spec, threads, {}, nullptr).status()).reason, "ARTIFACT_EXISTS");
}

TEST(ConvertPairs, WordsThatContradictAGgufAreRefused) {
  const ScratchFolder scratch;
  const auto reason = [&](const std::function<void(CalibrationSpec&)>& change) {
    CalibrationSpec spec = StoriesSpec(scratch);
    spec.weight_dtype = "int4";
    spec.group_size = 0;
    spec.format = "gguf_q4_0";
    change(spec);
    ThreadPool threads(1);
    return GetErrorReason(CalibrateModel(spec, threads, {}, nullptr).status()).reason;
  };
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.weight_dtype = "int8"; }), "FIELD_NOT_SUPPORTED");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.asymmetric = true; }), "FIELD_NOT_SUPPORTED");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.activation_dtype = "int8"; }), "FIELD_NOT_SUPPORTED");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.group_size = 48; }), "FIELD_NOT_SUPPORTED");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.act_order = true; }), "FIELD_NOT_SUPPORTED");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.scale_precision = "bf16"; }), "FIELD_NOT_SUPPORTED");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.format = "gguf_q9"; }), "UNSUPPORTED_OUTPUT_FORMAT");
  EXPECT_EQ(reason([](CalibrationSpec& s) {
              s.format = "gguf_q4_k";
              s.method = "gptq";
            }),
            "METHOD_NEEDS_INTEGER_GRID");
  // Rows of 172 inputs are no whole blocks: said with the sizes that are.
  EXPECT_EQ(reason([](CalibrationSpec&) {}), "GROUP_SIZE_MUST_DIVIDE_K");
}

}  // namespace
}  // namespace sage::convert_pairs_test
