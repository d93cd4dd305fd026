// Calibration: the written folder means what the strategy decided, a stopped run continues to the same bytes, damage is
// found, and specs that cannot be honoured are refused with a reason.
#include <cstring>

#include "engine/base/file.h"
#include "engine/base/glob.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"
#include "engine/runtime/artifact_source.h"
#include "engine/runtime/calibrate_plan.h"
#include "engine/tokenizer/tokenizer.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"

namespace sage::calibrate_test {
namespace {

std::string ReasonOf(const absl::Status& status) { return GetErrorReason(status).reason; }

absl::StatusOr<CalibrationResult> Calibrate(const CalibrationSpec& spec, const CancelToken& cancel = {},
                                            const ProgressFn& progress = nullptr) {
  ThreadPool threads(2);
  return CalibrateModel(spec, threads, cancel, progress);
}

TEST(Calibrate, WritesWhatTheStrategyMeansBitForBit) {
  const ScratchFolder scratch;
  const CalibrationSpec spec = StoriesSpec(scratch);
  const auto result = Calibrate(spec);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->quantization, "int8_w8a16");
  EXPECT_EQ(result->format, "compressed_tensors");
  EXPECT_FALSE(result->resumed);
  EXPECT_GT(result->bits_per_weight, 8.0);
  EXPECT_LT(result->bits_per_weight, 10.0);

  ThreadPool threads(2);
  const auto source = ArtifactSource::Open(spec.model), written = ArtifactSource::Open(spec.output);
  ASSERT_TRUE(source.ok()) << source.status();
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ((*written)->checkpoint().format(), "compressed_tensors");
  EXPECT_FALSE((*written)->config().rope.interleaved);
  const auto plan = PlanCalibration(spec);
  ASSERT_TRUE(plan.ok());
  std::map<std::string, double> errors;
  for (const LayerResult& layer : result->layers) errors[layer.name] = layer.error;
  for (const LinearSlot& slot : (*source)->linears()) {
    const auto weight = (*source)->Weight(slot, threads), stored = (*written)->Weight(slot, threads);
    ASSERT_TRUE(weight.ok() && stored.ok()) << slot.name << stored.status();
    ASSERT_EQ(errors.count(slot.name), 1u);
    const size_t bytes = static_cast<size_t>(slot.N * slot.K) * sizeof(float);
    if (slot.layer < 0) {
      EXPECT_EQ(std::memcmp(weight->as<float>(), stored->as<float>(), bytes), 0) << slot.name;
      continue;
    }
    const auto quantized = plan->strategy->quantize(weight->view(), plan->linear, {}, threads);
    ASSERT_TRUE(quantized.ok());
    const auto want = Dequantize(*quantized);
    ASSERT_TRUE(want.ok());
    EXPECT_EQ(std::memcmp(want->as<float>(), stored->as<float>(), bytes), 0) << slot.name;
    EXPECT_GT(errors[slot.name], 1e-4) << slot.name;
    EXPECT_LT(errors[slot.name], 2e-2) << slot.name;
  }
}

TEST(Calibrate, RowsOfInterleavedGgufsMoveToHuggingFaceOrder) {
  ThreadPool threads(2);
  const auto source = ArtifactSource::Open(StoriesGguf());
  ASSERT_TRUE(source.ok()) << source.status();
  ASSERT_TRUE((*source)->config().rope.interleaved);
  const int64_t D = (*source)->config().D;
  for (const LinearSlot& slot : (*source)->ShardLinears(0)) {
    const auto stored = (*source)->checkpoint().GetLinear(slot.name);
    const auto raw = Dequantize(*stored);
    const auto moved = (*source)->Weight(slot, threads);
    ASSERT_TRUE(raw.ok() && moved.ok());
    const bool rotary = slot.kind == "q_proj" || slot.kind == "k_proj";
    for (int64_t n = 0; n < slot.N; ++n) {
      const int64_t i = n % D;
      const int64_t from = !rotary ? n : n - i + (i < D / 2 ? 2 * i : 2 * (i - D / 2) + 1);
      ASSERT_EQ(std::memcmp(moved->as<float>() + n * slot.K, raw->as<float>() + from * slot.K,
                            static_cast<size_t>(slot.K) * sizeof(float)),
                0)
          << slot.name << " row " << n;
    }
  }
}

TEST(Calibrate, AStoppedRunEndsWithTheSameBytes) {
  const ScratchFolder scratch;
  CalibrationSpec spec = StoriesSpec(scratch);
  ASSERT_TRUE(Calibrate(spec).ok());
  const auto whole = FolderBytes(spec.output);
  EXPECT_EQ(whole.count("sage_quant.json"), 1u);
  for (const int64_t stop_at : {1, 3, 5}) {
    spec.output = scratch / ("again" + std::to_string(stop_at));
    CancelToken cancel;
    const auto stopped = Calibrate(spec, cancel, [&](const Progress& p) {
      if (p.done == stop_at) cancel.Cancel();
    });
    ASSERT_EQ(stopped.status().code(), absl::StatusCode::kCancelled);
    EXPECT_FALSE(std::filesystem::exists(spec.output));
    int64_t first = -1;
    const auto result = Calibrate(spec, {}, [&](const Progress& p) { first = first < 0 ? p.done : first; });
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->resumed);
    EXPECT_EQ(first, stop_at + 1);  // the layer that was running when the cancel came was still finished
    EXPECT_EQ(FolderBytes(spec.output), whole) << stop_at;
  }
}

TEST(Calibrate, ADamagedShardOfAStoppedRunIsMadeAgain) {
  const ScratchFolder scratch;
  CalibrationSpec spec = StoriesSpec(scratch);
  ASSERT_TRUE(Calibrate(spec).ok());
  const auto whole = FolderBytes(spec.output);
  spec.output = scratch / "again";
  CancelToken cancel;
  ASSERT_FALSE(Calibrate(spec, cancel, [&](const Progress& p) {
                 if (p.done == 3) cancel.Cancel();
               }).ok());
  bool damaged = false;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(scratch / "work")) {
    if (entry.path().filename() != "model-00002-of-00006.safetensors") continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-3, std::ios::end);
    file.put('\x5a');
    damaged = true;
  }
  ASSERT_TRUE(damaged);
  int64_t first = -1;
  const auto result = Calibrate(spec, {}, [&](const Progress& p) { first = first < 0 ? p.done : first; });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(first, 1);
  EXPECT_EQ(FolderBytes(spec.output), whole);
}

TEST(Calibrate, ThreadsDoNotChangeTheBytes) {
  const ScratchFolder scratch;
  CalibrationSpec spec = StoriesSpec(scratch);
  ASSERT_TRUE(Calibrate(spec).ok());
  const auto two = FolderBytes(spec.output);
  spec.output = scratch / "one";
  ThreadPool one(1);
  ASSERT_TRUE(CalibrateModel(spec, one, {}, nullptr).ok());
  EXPECT_EQ(FolderBytes(spec.output), two);
}

TEST(Calibrate, AnExistingOutputIsReturnedForTheSameSpecOnly) {
  const ScratchFolder scratch;
  CalibrationSpec spec = StoriesSpec(scratch);
  const auto first = Calibrate(spec);
  ASSERT_TRUE(first.ok());
  const auto again = Calibrate(spec);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->resumed);
  EXPECT_EQ(again->layers.size(), first->layers.size());
  EXPECT_EQ(again->weight_bytes, first->weight_bytes);
  spec.asymmetric = true;
  const auto other = Calibrate(spec);
  EXPECT_EQ(other.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReasonOf(other.status()), "ARTIFACT_EXISTS");
}

TEST(Calibrate, AModelThatIsCutMeanwhileGivesNoArtifact) {
  const ScratchFolder scratch;
  CalibrationSpec spec = StoriesSpec(scratch);
  spec.model = scratch / "model.gguf";
  std::filesystem::copy_file(StoriesGguf(), spec.model);
  const auto result = Calibrate(spec, {}, [&](const Progress& p) {
    if (p.done == 2) std::filesystem::resize_file(spec.model, 4096);
  });
  EXPECT_EQ(ReasonOf(result.status()), "MODEL_FILE_CHANGED") << result.status();
  EXPECT_FALSE(std::filesystem::exists(spec.output));
  // What was finished before is whole: with the file put back the run goes on there.
  std::filesystem::copy_file(StoriesGguf(), spec.model, std::filesystem::copy_options::overwrite_existing);
  int64_t first = -1;
  const auto again = Calibrate(spec, {}, [&](const Progress& p) { first = first < 0 ? p.done : first; });
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(first, 2);
  spec.output = scratch / "other";
  spec.work_dir = scratch / "elsewhere";
  ASSERT_TRUE(Calibrate(spec).ok());
  EXPECT_EQ(FolderBytes(again->path), FolderBytes(spec.output));
}

TEST(Calibrate, VerifyFindsEveryKindOfDamage) {
  const ScratchFolder scratch;
  const CalibrationSpec spec = StoriesSpec(scratch);
  ASSERT_TRUE(Calibrate(spec).ok());
  const auto good = VerifyArtifactFolder(spec.output, {});
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_GT(*good, 5 * 7 * 3);
  const auto whole = FolderBytes(spec.output);
  for (const char* name : {"model-00003-of-00006.safetensors", "config.json", "tokenizer.json"}) {
    ASSERT_EQ(whole.count(name), 1u) << name;
    std::string bytes = whole.at(name);
    bytes[bytes.size() - 3] = static_cast<char>(bytes[bytes.size() - 3] ^ 1);
    ASSERT_TRUE(WriteFileAtomic(spec.output + "/" + name, bytes).ok());
    EXPECT_EQ(VerifyArtifactFolder(spec.output, {}).status().code(), absl::StatusCode::kDataLoss) << name;
    std::filesystem::remove(spec.output + "/" + name);
    EXPECT_EQ(VerifyArtifactFolder(spec.output, {}).status().code(), absl::StatusCode::kDataLoss) << name;
    ASSERT_TRUE(WriteFileAtomic(spec.output + "/" + name, whole.at(name)).ok());
  }
  EXPECT_TRUE(VerifyArtifactFolder(spec.output, {}).ok());
  EXPECT_EQ(ReasonOf(VerifyArtifactFolder(scratch / "work", {}).status()), "NO_MANIFEST");
}

TEST(Calibrate, TheTokenizerOfAGgufTravelsAlong) {
  const ScratchFolder scratch;
  const CalibrationSpec spec = StoriesSpec(scratch);
  ASSERT_TRUE(Calibrate(spec).ok());
  const auto from = LoadTokenizer(spec.model), to = LoadTokenizer(spec.output);
  ASSERT_TRUE(from.ok()) << from.status();
  ASSERT_TRUE(to.ok()) << to.status();
  EXPECT_EQ(from->tokenizer->vocab_size(), to->tokenizer->vocab_size());
  EXPECT_EQ(from->tokenizer->bos_id(), to->tokenizer->bos_id());
  for (const char* text : {"Once upon a time, there was a little girl named Lily.", " two  spaces\nand a line",
                           "caf\xc3\xa9 \xf0\x9f\x98\x80 1234", ""}) {
    const auto a = from->tokenizer->Encode(text, true), b = to->tokenizer->Encode(text, true);
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_EQ(*a, *b) << text;
    EXPECT_EQ(*from->tokenizer->Decode(*a, true), *to->tokenizer->Decode(*b, true)) << text;
  }
}

TEST(Calibrate, GroupsExcludesAndBiasesOfAFolder) {
  const std::string model = GoldenModel("08-qwen2-tied");
  if (!std::filesystem::exists(model)) GTEST_SKIP() << "shared golden data is absent";
  const ScratchFolder scratch;
  CalibrationSpec spec = StoriesSpec(scratch);
  spec.model = model;
  spec.weight_dtype = "int4";
  spec.group_size = 0;
  spec.asymmetric = true;
  spec.exclude = {"*.layers.1.mlp.*"};
  const auto result = Calibrate(spec);
  ASSERT_TRUE(result.ok()) << result.status();
  ThreadPool threads(2);
  const auto source = ArtifactSource::Open(model), written = ArtifactSource::Open(spec.output);
  ASSERT_TRUE(written.ok()) << written.status();
  for (const LinearSlot& slot : (*source)->linears()) {
    const auto stored = (*written)->Stored(slot);
    ASSERT_TRUE(stored.ok()) << stored.status();
    const bool excluded = slot.name.find("layers.1.mlp") != std::string::npos;
    EXPECT_EQ(stored->spec.strategy, excluded ? "bf16" : "int4_w4a16") << slot.name;
    if (!excluded) {
      EXPECT_EQ(stored->spec.group_size, 64) << slot.name;
    }
    const auto before = (*source)->Bias(slot), after = (*written)->Bias(slot);
    ASSERT_TRUE(before.ok() && after.ok());
    ASSERT_EQ(before->view.bytes, after->view.bytes) << slot.name;
    if (before->view.bytes > 0) {
      EXPECT_EQ(std::memcmp(before->view.data, after->view.data, before->view.bytes), 0);
    }
  }
}

TEST(Calibrate, RefusalsNameTheRule) {
  const ScratchFolder scratch;
  const auto reason = [&](auto change) {
    CalibrationSpec spec = StoriesSpec(scratch);
    change(spec);
    return ReasonOf(Calibrate(spec).status());
  };
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.group_size = 0; }), "GROUP_SIZE_MUST_DIVIDE_K");  // K = 172
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.group_size = 32; }), "GROUP_SIZE_MUST_DIVIDE_K");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.group_size = -7; }), "BAD_GROUP_SIZE");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.act_order = true; }), "ACT_ORDER_NEEDS_GPTQ");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.clip_ratio = 1; }), "BAD_CLIP_RATIO");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.method = "nonsense"; }), "UNKNOWN_CALIBRATION_METHOD");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.weight_dtype = "int5"; }), "UNKNOWN_QUANTIZATION");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.weight_dtype = "bf16"; }), "NOTHING_TO_QUANTIZE");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.exclude = {"model.layers.*"}; }), "NOTHING_TO_QUANTIZE");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.exclude = {"*.o_prj"}; }), "PATTERN_MATCHES_NOTHING");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.format = "safetensors"; }), "UNSUPPORTED_OUTPUT_FORMAT");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.kv_quantization = "int3"; }), "UNKNOWN_KV_STRATEGY");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.model += ".absent"; }), "MODEL_NOT_FOUND");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.output.clear(); }), "OUTPUT_MISSING");
  EXPECT_FALSE(std::filesystem::exists(scratch / "artifact"));
}

TEST(Calibrate, TwoRunsOfOneSpecDoNotMeet) {
  const ScratchFolder scratch;
  const CalibrationSpec spec = StoriesSpec(scratch);
  absl::Status second;
  const auto first = Calibrate(spec, {}, [&](const Progress& p) {
    if (p.done == 1) second = Calibrate(spec).status();
  });
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(ReasonOf(second), "OPERATION_IN_PROGRESS");
}

TEST(GlobMatch, StarsAndQuestionMarks) {
  EXPECT_TRUE(GlobMatch("*", ""));
  EXPECT_TRUE(GlobMatch("*.down_proj", "model.layers.0.mlp.down_proj"));
  EXPECT_TRUE(GlobMatch("model.layers.?.mlp.*", "model.layers.7.mlp.up_proj"));
  EXPECT_FALSE(GlobMatch("model.layers.?.mlp.*", "model.layers.17.mlp.up_proj"));
  EXPECT_FALSE(GlobMatch("down_proj", "model.layers.0.mlp.down_proj"));
  EXPECT_FALSE(GlobMatch("", "x"));
  // Backtracking over many stars stays cheap.
  EXPECT_FALSE(GlobMatch(std::string(200, '*') + "b", std::string(100000, 'a')));
}

}  // namespace
}  // namespace sage::calibrate_test
