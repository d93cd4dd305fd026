// Options of a calibration: methods that look at text resume and repeat to the same bytes, layers that are stored
// otherwise than the rest, memory caps and spilled activations, checks for tensor parallelism.
#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"
#include "engine/runtime/artifact_source.h"
#include "engine/runtime/calibrate_estimate.h"
#include "engine/runtime/calibrate_overrides.h"
#include "engine/runtime/state_buffer.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"
#include "tests/unit/runtime/tiny_model.h"

namespace sage::calibrate_options_test {
namespace {

std::string ReasonOf(const absl::Status& status) { return GetErrorReason(status).reason; }

absl::StatusOr<CalibrationResult> Calibrate(const CalibrationSpec& spec, int workers = 2,
                                            const CancelToken& cancel = {}, const ProgressFn& progress = nullptr) {
  ThreadPool threads(workers);
  return CalibrateModel(spec, threads, cancel, progress);
}

TEST(CalibrateOptions, CompensatedRunsResumeAndRepeatToTheSameBytes) {
  const ScratchFolder scratch;
  for (const char* method : {"gptq", "awq+gptq", "autoround", "qat"}) {
    CalibrationSpec spec = StoriesTextSpec(scratch, method);
    spec.asymmetric = true;
    spec.output = scratch / (std::string("two-") + method);
    const auto whole = Calibrate(spec);
    ASSERT_TRUE(whole.ok()) << method << whole.status();
    const auto bytes = FolderBytes(spec.output);
    spec.output = scratch / (std::string("one-") + method);
    ASSERT_TRUE(Calibrate(spec, 1).ok());
    EXPECT_EQ(FolderBytes(spec.output), bytes) << method;
    spec.output = scratch / (std::string("again-") + method);
    CancelToken cancel;
    ASSERT_FALSE(Calibrate(spec, 2, cancel, [&](const Progress& p) {
                   if (p.done == 2) cancel.Cancel();
                 }).ok());
    const auto resumed = Calibrate(spec);
    ASSERT_TRUE(resumed.ok()) << resumed.status();
    EXPECT_TRUE(resumed->resumed);
    EXPECT_EQ(FolderBytes(spec.output), bytes) << method;
  }
}

TEST(CalibrateOptions, SpilledActivationsGiveTheSameBytes) {
  const ScratchFolder scratch;
  CalibrationSpec spec = StoriesTextSpec(scratch, "gptq");
  const auto inside = Calibrate(spec);
  ASSERT_TRUE(inside.ok()) << inside.status();
  EXPECT_EQ(inside->spilled_bytes, 0);
  EXPECT_GT(inside->estimated_bytes, 0);
  EXPECT_GT(inside->estimated_seconds, 0);
  const auto bytes = FolderBytes(spec.output);
  const auto plan = PlanCalibration(spec);
  ASSERT_TRUE(plan.ok());
  const CalibrationEstimate estimate = EstimateCalibration(*plan, spec.samples, spec.sequence_length);
  EXPECT_EQ(estimate.activation_bytes, (plan->calibrator->compensates ? 2 : 1) * 6 * 96 * (64 + 64) * 4);
  spec.max_memory = estimate.peak_bytes() - 1;
  spec.output = scratch / "spilled";
  const auto spilled = Calibrate(spec);
  ASSERT_TRUE(spilled.ok()) << spilled.status();
  EXPECT_EQ(spilled->spilled_bytes, estimate.activation_bytes);
  EXPECT_LE(spilled->estimated_bytes, spec.max_memory);
  EXPECT_EQ(FolderBytes(spec.output), bytes);
  spec.max_memory = estimate.peak_bytes() - estimate.activation_bytes - 1;
  spec.output = scratch / "refused";
  const auto refused = Calibrate(spec);
  EXPECT_EQ(ReasonOf(refused.status()), "CALIBRATION_EXCEEDS_MEMORY");
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  spec.max_memory = -1;
  EXPECT_EQ(ReasonOf(Calibrate(spec).status()), "BAD_MAX_MEMORY");
}

// The machine's own limit spills first, and refuses what even then would have the kernel end the process.
TEST(CalibrateOptions, TheMachinesMemorySpillsAndThenRefuses) {
  CalibrationEstimate estimate;
  estimate.activation_bytes = 1000;
  estimate.layer_bytes = 200;
  estimate.statistics_bytes = 100;
  EXPECT_TRUE(FitIntoMemory(0, -1, &estimate).ok());
  EXPECT_FALSE(estimate.spill);
  EXPECT_TRUE(FitIntoMemory(0, 1300, &estimate).ok());
  EXPECT_FALSE(estimate.spill);
  EXPECT_TRUE(FitIntoMemory(0, 1299, &estimate).ok());
  EXPECT_TRUE(estimate.spill);
  EXPECT_TRUE(FitIntoMemory(1299, 300, &estimate).ok());
  EXPECT_TRUE(estimate.spill);
  const absl::Status refused = FitIntoMemory(0, 299, &estimate);
  EXPECT_EQ(ReasonOf(refused), "INSUFFICIENT_MEMORY");
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(FitIntoMemory(299, 299, &estimate)), "CALIBRATION_EXCEEDS_MEMORY");
}

// The manifest says of every block what training gained on held-out texts; excluded layers and 8-bit activations go
// along, spilled states change nothing.
TEST(CalibrateOptions, TrainedBlocksAreCloserThanTheirStart) {
  const ScratchFolder scratch;
  CalibrationSpec spec = StoriesTextSpec(scratch, "qat");
  spec.asymmetric = true;
  spec.exclude = {"*.layers.1.*"};
  spec.samples = 12;
  const auto plan = PlanCalibration(spec);
  ASSERT_TRUE(plan.ok()) << plan.status();
  const CalibrationEstimate estimate = EstimateCalibration(*plan, spec.samples, spec.sequence_length);
  const auto made = Calibrate(spec);
  ASSERT_TRUE(made.ok()) << made.status();
  const auto manifest = ReadManifest(spec.output);
  ASSERT_TRUE(manifest.ok());
  int better = 0;
  for (const Json& layer : (*manifest)["calibration_record"]["layers"]) {
    const double before = layer["block_error_before"], after = layer["block_error"];
    if (!layer["quantized"]) continue;
    EXPECT_GT(before, 0) << layer["name"];
    EXPECT_LE(after, before) << layer["name"];
    better += after < 0.99 * before;
  }
  EXPECT_GE(better, 7);  // linears of a layer
  const auto bytes = FolderBytes(spec.output);
  spec.output = scratch / "spilled";
  spec.max_memory = estimate.peak_bytes() - 1;
  const auto spilled = Calibrate(spec);
  ASSERT_TRUE(spilled.ok()) << spilled.status();
  EXPECT_EQ(spilled->spilled_bytes, estimate.activation_bytes);
  EXPECT_EQ(FolderBytes(spec.output), bytes);
  spec.max_memory = 0;
  spec.activation_dtype = "int8";
  spec.asymmetric = false;
  spec.output = scratch / "bytes";
  EXPECT_TRUE(Calibrate(spec).ok());
  spec.samples = 1;
  spec.output = scratch / "one";
  EXPECT_EQ(ReasonOf(Calibrate(spec).status()), "TOO_FEW_TEXTS");
}

// Writes, opens again, and looks at every layer's scheme.
TEST(CalibrateOptions, LayersMayBeStoredOtherwise) {
  const ScratchFolder scratch;
  const char *four = "int4_w4a16", *eight = "int8_w8a16";
  CalibrationSpec spec = StoriesTextSpec(scratch, "gptq");
  spec.group_size = 43;  // divides 172, not 64: only where it is overridden
  EXPECT_EQ(ReasonOf(Calibrate(spec).status()), "GROUP_SIZE_MUST_DIVIDE_K");
  spec.group_size = -1;
  spec.overrides = {"*.down_proj=bits:8",
                    "*.layers.1.*=group_size:16",
                    "*.layers.1.mlp.down_proj=bits:4,group_size:43",
                    "*.layers.2.self_attn.*=exclude:true",
                    "*.layers.2.self_attn.v_proj=exclude:false",
                    "*.layers.3.mlp.*=symmetric:false"};
  const auto result = Calibrate(spec);
  ASSERT_TRUE(result.ok()) << result.status();
  const auto written = ArtifactSource::Open(spec.output);
  ASSERT_TRUE(written.ok()) << written.status();
  for (const LinearSlot& slot : (*written)->linears()) {
    const auto stored = (*written)->Stored(slot);
    ASSERT_TRUE(stored.ok()) << slot.name << stored.status();
    const bool down = slot.kind == "down_proj", attention = slot.name.find("self_attn") != std::string::npos;
    if (slot.layer < 0 || (slot.layer == 2 && attention && slot.kind != "v_proj")) {
      EXPECT_NE(stored->spec.strategy, four) << slot.name;
      EXPECT_NE(stored->spec.strategy, eight) << slot.name;
      continue;
    }
    EXPECT_EQ(stored->spec.strategy, down && slot.layer != 1 ? eight : four) << slot.name;
    EXPECT_EQ(stored->spec.group_size, slot.layer != 1 ? -1 : down ? 43 : 16) << slot.name;
    EXPECT_EQ(stored->spec.symmetric, slot.layer != 3 || attention) << slot.name;
  }
  EXPECT_TRUE(VerifyArtifactFolder(spec.output, {}).ok());
  const auto again = Calibrate(spec);
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE(again->resumed);
}

TEST(CalibrateOptions, LayersOfGptqFoldersMayBeStoredOtherwise) {
  const ScratchFolder scratch;
  ASSERT_TRUE(MakeDirectories(scratch / "model").ok());
  TinySizes sizes;
  sizes.hidden = 64;
  sizes.D = 32;  // every N and K a multiple of 32, as the format asks
  ASSERT_TRUE(WriteTinyModel(scratch / "model", sizes));
  std::string ids = "[1";
  for (int i = 1; i < 600; ++i) ids += absl::StrCat(",", i * i * 7 % 40);
  ids += "]";
  ASSERT_TRUE(WriteFileAtomic(scratch / "ids.json", ids).ok());
  CalibrationSpec spec = StoriesSpec(scratch);
  spec.model = scratch / "model";
  spec.method = "gptq";
  spec.weight_dtype = "int4";
  spec.format = "gptq";
  spec.dataset = scratch / "ids.json";
  spec.samples = 4;
  spec.sequence_length = 128;
  spec.group_size = 32;
  spec.overrides = {"*.mlp.*=bits:8", "*.q_proj=group_size:16", "*.o_proj=exclude:true", "*.gate_proj=bits:4"};
  for (const bool act_order : {false, true}) {
    spec.act_order = act_order;
    spec.output = scratch / (act_order ? "ordered" : "plain");
    const auto result = Calibrate(spec);
    ASSERT_TRUE(result.ok()) << result.status();
    const auto written = ArtifactSource::Open(spec.output);
    ASSERT_TRUE(written.ok()) << written.status();
    for (const LinearSlot& slot : (*written)->linears()) {
      const auto stored = (*written)->Stored(slot);
      ASSERT_TRUE(stored.ok()) << slot.name << stored.status();
      if (slot.layer < 0 || slot.kind == "o_proj") {
        EXPECT_EQ(stored->spec.strategy, "bf16") << slot.name;
        continue;
      }
      const bool eight = slot.kind == "up_proj" || slot.kind == "down_proj";
      EXPECT_EQ(stored->spec.strategy, eight ? "gptq_w8a16" : "gptq_w4a16") << slot.name;
      EXPECT_EQ(stored->spec.group_size, slot.kind == "q_proj" ? 16 : 32) << slot.name;
    }
    EXPECT_TRUE(VerifyArtifactFolder(spec.output, {}).ok());
  }
}

TEST(CalibrateOptions, TheCommonGroupSizeNeedNotFitLayersWithTheirOwn) {
  const ScratchFolder scratch;
  CalibrationSpec spec = StoriesSpec(scratch);
  spec.weight_dtype = "int4";
  spec.group_size = 32;  // divides 64, not the 172 inputs of down_proj
  EXPECT_EQ(ReasonOf(PlanCalibration(spec).status()), "GROUP_SIZE_MUST_DIVIDE_K");
  spec.overrides = {"*.down_proj=group_size:43"};
  const auto plan = PlanCalibration(spec);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->linear.group_size, 32);
  EXPECT_EQ(plan->ChoiceOf("model.layers.0.mlp.down_proj").linear.group_size, 43);
  spec.overrides = {"*.down_proj=bits:8"};
  EXPECT_EQ(ReasonOf(PlanCalibration(spec).status()), "GROUP_SIZE_MUST_DIVIDE_K");
}

TEST(CalibrateOptions, RefusesToExcludeWhereNoWeightIsQuantized) {
  const ScratchFolder scratch;
  CalibrationSpec spec = StoriesTextSpec(scratch, "minmax");
  spec.weight_dtype = "none";
  spec.kv_quantization = "int8_per_token";
  EXPECT_TRUE(PlanCalibration(spec).ok()) << PlanCalibration(spec).status();
  spec.exclude = {"*.o_proj"};
  EXPECT_EQ(ReasonOf(PlanCalibration(spec).status()), "NOTHING_TO_EXCLUDE");
  spec.exclude.clear();
  spec.overrides = {"*.o_proj=bits:8"};
  EXPECT_EQ(ReasonOf(PlanCalibration(spec).status()), "NOTHING_TO_EXCLUDE");
}

TEST(CalibrateOptions, RefusesOverridesThatCannotBeHonoured) {
  const ScratchFolder scratch;
  const auto reason = [&](const std::string& text, const std::string& format = "") {
    CalibrationSpec spec = StoriesSpec(scratch);
    spec.weight_dtype = "int4";
    spec.format = format;
    spec.overrides = {text};
    return ReasonOf(Calibrate(spec).status());
  };
  EXPECT_EQ(reason("bits:4"), "BAD_OVERRIDE");
  EXPECT_EQ(reason("*.o_proj=bits"), "BAD_OVERRIDE");
  EXPECT_EQ(reason("*.o_proj=bits:9"), "BAD_OVERRIDE");
  EXPECT_EQ(reason("*.o_proj=bits:4x"), "BAD_OVERRIDE");
  EXPECT_EQ(reason("*.o_proj=symmetric:maybe"), "BAD_OVERRIDE");
  EXPECT_EQ(reason("*.o_proj=group_size:0"), "BAD_OVERRIDE");
  EXPECT_EQ(reason("*.o_proj=method:awq"), "BAD_OVERRIDE");
  EXPECT_EQ(reason("*.o_prj=bits:8"), "PATTERN_MATCHES_NOTHING");
  EXPECT_EQ(reason("*.o_proj=bits:3"), "OVERRIDE_NOT_HELD");
  EXPECT_EQ(reason("*.down_proj=group_size:32"), "GROUP_SIZE_MUST_DIVIDE_K");
  EXPECT_EQ(reason("model.layers.*=exclude:true"), "NOTHING_TO_QUANTIZE");
}

TEST(CalibrateOptions, GroupsMustNotCrossShards) {
  const ScratchFolder scratch;
  // group: of down_proj, whose K is 172; -1 = one scale a row as everywhere else.
  const auto status = [&](int shards, int group, bool act_order = false) {
    CalibrationSpec spec = StoriesTextSpec(scratch, "gptq");
    spec.tensor_parallel = shards;
    if (group > 0) spec.overrides = {"*.down_proj=group_size:" + std::to_string(group)};
    spec.act_order = act_order;
    return PlanCalibration(spec).status();
  };
  EXPECT_TRUE(status(1, 172).ok()) << status(1, 172);
  EXPECT_TRUE(status(2, -1).ok());
  EXPECT_TRUE(status(4, -1).ok());
  EXPECT_TRUE(status(2, 43).ok()) << status(2, 43);  // 172 / 2 = 86
  EXPECT_TRUE(status(2, -1, true).ok());
  EXPECT_EQ(ReasonOf(status(3, -1)), "TENSOR_PARALLEL_SHAPE");
  EXPECT_EQ(GetErrorReason(status(3, -1)).metadata.at("allowed"), "1, 2, 4");
  EXPECT_EQ(ReasonOf(status(2, 172)), "TENSOR_PARALLEL_GROUPS");
  EXPECT_EQ(GetErrorReason(status(2, 172)).metadata.at("layer"), "model.layers.0.mlp.down_proj");
  EXPECT_EQ(ReasonOf(status(0, -1)), "BAD_TENSOR_PARALLEL");
  EXPECT_EQ(ReasonOf(status(5000, -1)), "BAD_TENSOR_PARALLEL");
}

TEST(CalibrateOptions, FilesOfActivationsAreGoneAtOnce) {
  const ScratchFolder scratch;
  ASSERT_TRUE(MakeDirectories(scratch / "spill").ok());
  auto buffer = StateBuffer::Allocate(300, 70, scratch / "spill");
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_TRUE(buffer->spilled());
  EXPECT_TRUE(std::filesystem::is_empty(scratch / "spill"));
  for (int i = 0; i < 300 * 70; ++i) ASSERT_EQ(buffer->data()[i], 0);
  for (int i = 0; i < 300 * 70; ++i) buffer->data()[i] = static_cast<float>(i);
  buffer->Release();
  StateBuffer moved = *std::move(buffer);
  for (int i = 0; i < 300 * 70; ++i) ASSERT_EQ(moved.data()[i], static_cast<float>(i));
  EXPECT_EQ(ReasonOf(StateBuffer::Allocate(4, 4, scratch / "absent").status()), "SPILL_FAILED");
}

}  // namespace
}  // namespace sage::calibrate_options_test
