// Rotated models: the same logits as the model they were made from, ordinary checkpoints under every method, the same
// bytes after a stop and for any number of threads, and refusals where a rotation cannot be.
#include <cmath>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"
#include "engine/runtime/artifact_source.h"
#include "engine/runtime/calibrate_estimate.h"
#include "gtest/gtest.h"
#include "tests/unit/decoder/golden_data.h"
#include "tests/unit/runtime/artifact_folder.h"
#include "tests/unit/runtime/model_logits.h"
#include "tests/unit/runtime/tiny_model.h"

namespace sage::rotation_test {
namespace {

std::string ReasonOf(const absl::Status& status) { return GetErrorReason(status).reason; }

absl::StatusOr<CalibrationResult> Calibrate(const CalibrationSpec& spec, int workers = 2,
                                            const CancelToken& cancel = {}, const ProgressFn& progress = nullptr) {
  ThreadPool threads(workers);
  return CalibrateModel(spec, threads, cancel, progress);
}

// Weights as they are, rotated only.
CalibrationSpec PlainSpec(const ScratchFolder& scratch, const std::string& model) {
  CalibrationSpec spec;
  spec.model = model;
  spec.weight_dtype = "none";
  spec.rotate = true;
  spec.output = scratch / "rotated";
  spec.work_dir = scratch / "work";
  return spec;
}

// What a rotated folder must look like beside its source.
void CheckFolder(const std::string& from, const std::string& rotated) {
  ThreadPool threads(2);
  const auto before = ArtifactSource::Open(from), after = ArtifactSource::Open(rotated);
  ASSERT_TRUE(before.ok()) << before.status();
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_FALSE((*after)->config().tied_embeddings);
  const auto plain = (*after)->PlainValues(0, threads);
  ASSERT_TRUE(plain.ok());
  for (const NamedTensor& tensor : *plain) {
    if (!ModelRotation::FoldsNorm(tensor.name)) continue;
    for (int64_t i = 0; i < tensor.view.elements(); ++i) ASSERT_EQ(tensor.view.as<float>()[i], 1.0f) << tensor.name;
  }
  for (const LinearSlot& slot : (*before)->ShardLinears(0)) {
    const auto a = (*before)->Weight(slot, threads), b = (*after)->Weight(slot, threads);
    ASSERT_TRUE(a.ok() && b.ok()) << slot.name;
    EXPECT_NE(std::memcmp(a->as<float>(), b->as<float>(), a->bytes()), 0) << slot.name;
  }
}

TEST(Rotation, ChangesNoLogitOfTheGoldenModels) {
  if (!HaveGolden()) GTEST_SKIP() << "shared golden data is absent";
  int ran = 0;
  ThreadPool threads(2);
  for (const auto& entry : std::filesystem::directory_iterator(GoldenFolder() + "/models")) {
    if (!OpenCheckpoint(entry.path().string()).ok() || !ArtifactSource::Open(entry.path().string()).ok()) continue;
    SCOPED_TRACE(entry.path().filename().string());
    const ScratchFolder scratch;
    const std::string exact = scratch / "f32";  // without rounding between the two
    ASSERT_TRUE(ConvertArtifact({entry.path().string(), "f32", exact}, threads, {}, nullptr).ok());
    const auto want = LogitsOf(exact);
    ASSERT_TRUE(want.ok()) << want.status();
    const CalibrationSpec spec = PlainSpec(scratch, exact);
    const auto result = Calibrate(spec);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->format, "safetensors");
    const auto got = LogitsOf(spec.output);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_LT(Apart(*want, *got), 1e-4);
    CheckFolder(exact, spec.output);
    EXPECT_TRUE(VerifyArtifactFolder(spec.output, {}).ok());
    ++ran;
  }
  EXPECT_GE(ran, 14);
}

TEST(Rotation, OfAGgufWithAdjacentPairs) {
  const ScratchFolder scratch;
  const CalibrationSpec spec = PlainSpec(scratch, StoriesGguf());
  ASSERT_TRUE(Calibrate(spec).ok());
  const auto want = LogitsOf(spec.model), got = LogitsOf(spec.output);
  ASSERT_TRUE(want.ok() && got.ok()) << want.status() << got.status();
  EXPECT_LT(Apart(*want, *got), 1e-4);
  const auto manifest = ReadManifest(spec.output);
  ASSERT_TRUE(manifest.ok());
  const Json record = (*manifest)["calibration_record"]["spec"]["rotation"];
  EXPECT_EQ(record["hidden_states"], "sylvester 64");
  EXPECT_EQ(record["values"], "sylvester 8");
}

CalibrationSpec RotatedSpec(const ScratchFolder& scratch, const std::string& method) {
  CalibrationSpec spec = StoriesTextSpec(scratch, method);
  const bool smooth = method == "smoothquant" || method == "awq+smoothquant";
  spec.weight_dtype = smooth ? "int8" : "int4";
  spec.activation_dtype = smooth ? "int8" : "";
  spec.rotate = true;
  return spec;
}

// Every layer is solved in the rotated model: its errors are those of rounding, not of a mismatch.
TEST(Rotation, UnderEveryMethodStopsResumeToTheSameBytes) {
  for (const char* method : {"rtn", "gptq", "awq", "awq+gptq", "smoothquant", "autoround"}) {
    SCOPED_TRACE(method);
    const ScratchFolder scratch;
    CalibrationSpec spec = RotatedSpec(scratch, method);
    const auto whole = Calibrate(spec);
    ASSERT_TRUE(whole.ok()) << whole.status();
    for (const LayerResult& layer : whole->layers) {
      if (layer.name == "lm_head") continue;
      EXPECT_LT(layer.error, 0.3) << layer.name;
    }
    const auto want = LogitsOf(spec.model), got = LogitsOf(spec.output);
    ASSERT_TRUE(want.ok() && got.ok()) << want.status() << got.status();
    EXPECT_LT(Apart(*want, *got), 0.5);
    const auto bytes = FolderBytes(spec.output);
    spec.output = scratch / "again";
    CancelToken cancel;
    ASSERT_FALSE(Calibrate(spec, 1, cancel, [&](const Progress& p) {
                   if (p.done == 2) cancel.Cancel();
                 }).ok());
    const auto resumed = Calibrate(spec, 1);
    ASSERT_TRUE(resumed.ok()) << resumed.status();
    EXPECT_TRUE(resumed->resumed);
    EXPECT_EQ(FolderBytes(spec.output), bytes);
  }
}

TEST(Rotation, SeedsDrawOtherSignsAndOtherBytes) {
  const ScratchFolder scratch;
  CalibrationSpec spec = PlainSpec(scratch, StoriesGguf());
  ASSERT_TRUE(Calibrate(spec).ok());
  const auto first = LogitsOf(spec.output);
  const std::string shard = Slurp(spec.output + "/model-00001-of-00006.safetensors");
  spec.seed = 7;
  spec.output = scratch / "seven";
  ASSERT_TRUE(Calibrate(spec).ok());
  const auto second = LogitsOf(spec.output);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_LT(Apart(*first, *second), 1e-4);
  EXPECT_NE(Slurp(spec.output + "/model-00001-of-00006.safetensors"), shard);
}

// Blocks of a GGUF from the rotated codes; types that are made from the model itself are refused.
TEST(Rotation, OfGgufFormats) {
  const ScratchFolder scratch;
  ASSERT_TRUE(MakeDirectories(scratch / "model").ok());
  ASSERT_TRUE(WriteTinyModel(scratch / "model", TinySizes{}));
  CalibrationSpec spec = PlainSpec(scratch, scratch / "model");
  spec.weight_dtype = "int8";
  spec.format = "gguf_q8_0";
  const auto result = Calibrate(spec);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->format, "gguf");
  const auto want = LogitsOf(spec.model), got = LogitsOf(spec.output);
  ASSERT_TRUE(want.ok() && got.ok()) << want.status() << got.status();
  EXPECT_LT(Apart(*want, *got), 0.05);
  spec.weight_dtype = "int4";
  spec.format = "gguf_q4_k";
  EXPECT_EQ(ReasonOf(Calibrate(spec).status()), "ROTATION_NOT_SUPPORTED");
}

TEST(Rotation, IsRefusedWhereNoMatrixIsKnown) {
  const ScratchFolder scratch;
  ASSERT_TRUE(MakeDirectories(scratch / "model").ok());
  TinySizes sizes;
  sizes.hidden = 30;
  ASSERT_TRUE(WriteTinyModel(scratch / "model", sizes));
  const auto refused = Calibrate(PlainSpec(scratch, scratch / "model"));
  EXPECT_EQ(ReasonOf(refused.status()), "NO_HADAMARD_MATRIX");
  EXPECT_EQ(GetErrorReason(refused.status()).metadata.at("block"), "2");
}

TEST(Rotation, HeadsWithoutAMatrixKeepTheirValues) {
  const ScratchFolder scratch;
  ASSERT_TRUE(MakeDirectories(scratch / "model").ok());
  TinySizes sizes;
  sizes.D = 6;
  ASSERT_TRUE(WriteTinyModel(scratch / "model", sizes));
  const std::string exact = scratch / "f32";
  ThreadPool threads(1);
  ASSERT_TRUE(ConvertArtifact({scratch / "model", "f32", exact}, threads, {}, nullptr).ok());
  const CalibrationSpec spec = PlainSpec(scratch, exact);
  const auto result = Calibrate(spec);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE((*ReadManifest(spec.output))["calibration_record"]["spec"]["rotation"]["values"].is_null());
  const auto want = LogitsOf(exact), got = LogitsOf(spec.output);
  ASSERT_TRUE(want.ok() && got.ok()) << want.status() << got.status();
  EXPECT_LT(Apart(*want, *got), 1e-4);
}

TEST(Rotation, EstimatesCountTheTables) {
  const ScratchFolder scratch;
  CalibrationSpec spec = PlainSpec(scratch, StoriesGguf());
  const auto plan = PlanCalibration(spec);
  ASSERT_TRUE(plan.ok());
  const DecoderConfig& c = plan->source->config();
  const int64_t bytes = static_cast<int64_t>(DTypeSize(plan->source->float_dtype()));
  const CalibrationEstimate estimate = EstimateCalibration(*plan, 1, 1);
  EXPECT_GE(estimate.table_bytes, 2 * c.V * c.hidden * bytes);
  EXPECT_GE(estimate.peak_bytes(), estimate.table_bytes);
  spec.max_memory = 1;
  EXPECT_EQ(ReasonOf(Calibrate(spec).status()), "CALIBRATION_EXCEEDS_MEMORY");
}

}  // namespace
}  // namespace sage::rotation_test
