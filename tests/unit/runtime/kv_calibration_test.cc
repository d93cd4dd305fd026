// KV plans of artifacts: static scales say what the calibration saw, layers and sinks travel along, engines serve them,
// other tools' schemes are honoured, and plans that contradict or miss something are refused.
#include <algorithm>
#include <fstream>
#include <functional>

#include "engine/api/checkpoint_format.h"
#include "engine/base/file.h"
#include "engine/base/json.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"
#include "engine/runtime/dataset.h"
#include "engine/runtime/kv_plan.h"
#include "engine/runtime/start_engine.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"

namespace sage::kv_calibration_test {
namespace {

std::string ReasonOf(const absl::Status& status) { return GetErrorReason(status).reason; }

CalibrationSpec KvSpec(const ScratchFolder& scratch, const std::string& kv, const std::string& name = "artifact") {
  CalibrationSpec spec = StoriesSpec(scratch);
  const std::string dataset = scratch / "text.txt";
  std::string text;
  for (int i = 0; i < 60; ++i) {
    text += i % 3 == 0 ? "Once upon a time there was a girl named Lily. " : "She liked to play in the big park. ";
  }
  std::ofstream(dataset) << text;
  spec.dataset = dataset;
  spec.samples = 6;
  spec.sequence_length = 48;
  spec.kv_quantization = kv;
  spec.output = scratch / name;
  return spec;
}

absl::StatusOr<Json> Made(const CalibrationSpec& spec, int threads = 2) {
  ThreadPool pool(threads);
  const auto result = CalibrateModel(spec, pool, CancelToken(), nullptr);
  if (!result.ok()) return result.status();
  return ReadManifest(spec.output);
}

absl::StatusOr<KvChoice> Choose(const std::string& path, KvAsked asked = {"", "bf16", {}, {}, 0}) {
  SAGE_ASSIGN_OR_RETURN(const std::shared_ptr<Checkpoint> checkpoint, OpenCheckpoint(path));
  SAGE_ASSIGN_OR_RETURN(const DecoderConfig config,
                        ParseModelConfig(checkpoint->config(), checkpoint->generation_config()));
  return ChooseKvPlan(*checkpoint, config, asked, 16);
}

TEST(KvCalibration, StaticScalesAreTheLargestMagnitudesOfAllSamples) {
  for (const auto& [kv, largest] : {std::pair<const char*, float>{"fp8_e4m3", 448.0f},
                                    {"fp8_e5m2", 57344.0f},
                                    {"int8", 127.0f},
                                    {"int8_per_channel", 127.0f}}) {
    SCOPED_TRACE(kv);
    const ScratchFolder scratch;
    const CalibrationSpec spec = KvSpec(scratch, kv);
    const auto manifest = Made(spec);
    ASSERT_TRUE(manifest.ok()) << manifest.status();
    const Json& plan = (*manifest)["kv_quant_plan"];
    EXPECT_EQ(plan["scales"], "calibrated");
    ASSERT_EQ(plan["layers"].size(), 5u);
    const auto choice = Choose(spec.output);
    ASSERT_TRUE(choice.ok()) << choice.status();
    EXPECT_TRUE(choice->calibrated);
    for (size_t l = 0; l < 5; ++l) {
      ASSERT_NE(choice->plan.layers[l].scales, nullptr);
      for (const bool key : {true, false}) {
        const std::vector<float>& scale =
            (key ? choice->plan.layers[l].scales->k : choice->plan.layers[l].scales->v).scale;
        const double absmax = plan["layers"][l][key ? "k" : "v"]["absmax"].get<double>();
        EXPECT_GT(absmax, 0.1);
        // f16, the dtype of an artifact of a GGUF, or f32 for channels.
        EXPECT_NEAR(*std::max_element(scale.begin(), scale.end()), absmax / largest, absmax / largest * 1e-3);
      }
    }
    const Json config = *ParseJson(Slurp(spec.output + "/config.json"), "config.json");
    const Json& scheme = config["quantization_config"]["kv_cache_scheme"];
    if (std::string(kv) == "fp8_e4m3" || std::string(kv) == "int8") {
      EXPECT_EQ(scheme["type"], std::string(kv) == "int8" ? "int" : "float");
      EXPECT_EQ(scheme["dynamic"], false);
    } else {
      EXPECT_TRUE(scheme.is_null());
    }
  }
}

TEST(KvCalibration, ThreadsAndResumingChangeNoByte) {
  const ScratchFolder scratch;
  CalibrationSpec spec = KvSpec(scratch, "int8_per_channel");
  spec.kv_asymmetric = true;
  spec.kv_sink_tokens = 4;
  ASSERT_TRUE(Made(spec, 1).ok());
  const auto whole = FolderBytes(spec.output);
  spec.output = scratch / "other";
  ThreadPool threads(3);
  CancelToken cancel;
  ASSERT_FALSE(CalibrateModel(spec, threads, cancel, [&](const Progress& p) {
                 if (p.done == 2) cancel.Cancel();
               }).ok());
  const auto result = CalibrateModel(spec, threads, CancelToken(), nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->resumed);
  EXPECT_EQ(FolderBytes(spec.output), whole);
}

TEST(KvCalibration, LayersSinksAndOwnWordsOverride) {
  const ScratchFolder scratch;
  CalibrationSpec spec = KvSpec(scratch, "fp8");
  spec.kv_exclude = {"layers.0", "model.layers.4.*"};
  spec.kv_sink_tokens = 3;
  const auto manifest = Made(spec);
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ((*manifest)["kv_quant_plan"]["layers_16bit"], Json({0, 4}));
  auto choice = Choose(spec.output);
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_EQ(choice->plan.Name(), "bf16+fp8_e4m3");
  EXPECT_EQ(choice->plan.sink_pages, 1);
  EXPECT_EQ(choice->plan.layers[4].strategy, "bf16");
  EXPECT_EQ(choice->plan.layers[4].scales, nullptr);
  choice = Choose(spec.output, {"fp8", "bf16", {}, {"layers.1"}, 33});
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_EQ(choice->wide, std::vector<int64_t>{1});
  EXPECT_EQ(choice->plan.sink_pages, 3);
  EXPECT_TRUE(choice->calibrated);
  choice = Choose(spec.output, {"int8", "bf16", {"layers.2", "layers.3"}, {"layers.3"}, 0});
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_FALSE(choice->calibrated);
  EXPECT_EQ(choice->wide, (std::vector<int64_t>{0, 1, 3, 4}));
  EXPECT_EQ(choice->plan.sink_pages, 0);
  choice = Choose(spec.output, {"none", "bf16", {}, {}, 0});
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_EQ(choice->plan.Name(), "bf16");
  EXPECT_EQ(ReasonOf(Choose(spec.output, {"fp8", "bf16", {}, {"layers.5"}, 0}).status()), "PATTERN_MATCHES_NOTHING");
  EXPECT_EQ(ReasonOf(Choose(spec.output, {"fp8", "bf16", {}, {}, 1025}).status()), "OUT_OF_RANGE");
}

TEST(KvCalibration, WordsThatCannotBeHonouredAreRefused) {
  const ScratchFolder scratch;
  const auto reason = [&](auto change) {
    CalibrationSpec spec = KvSpec(scratch, "int8");
    change(spec);
    return ReasonOf(Made(spec).status());
  };
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.kv_scales = "sometimes"; }), "BAD_KV_SCALES");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.kv_scales = "static", s.dataset.clear(); }), "DATASET_NEEDED");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.kv_scales = "static", s.kv_quantization = "bf16"; }), "KV_NOT_QUANTIZED");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.kv_quantization = "f32", s.kv_exclude = {"layers.0"}; }),
            "KV_NOT_QUANTIZED");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.kv_asymmetric = true; }), "KV_ASYMMETRIC_NEEDS_CHANNELS");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.kv_exclude = {"layers.7"}; }), "PATTERN_MATCHES_NOTHING");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.kv_sink_tokens = 2000; }), "OUT_OF_RANGE");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.kv_sink_tokens = 48; }), "NO_ACTIVATIONS");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.weight_dtype = "none", s.kv_scales = "dynamic"; }),
            "NOTHING_TO_QUANTIZE");
}

// Changes sage_quant.json of an artifact and says how opening its plan ends.
std::string ReasonAfter(const std::string& folder, const std::function<void(Json&)>& change) {
  const std::string path = folder + "/sage_quant.json", before = Slurp(path);
  Json manifest = *ParseJson(before, "manifest");
  change(manifest["kv_quant_plan"]);
  std::ofstream(path, std::ios::trunc) << manifest.dump();
  const std::string reason = ReasonOf(Choose(folder).status());
  std::ofstream(path, std::ios::trunc) << before;
  return reason;
}

TEST(KvCalibration, PlansThatContradictAreRefused) {
  const ScratchFolder scratch;
  const CalibrationSpec spec = KvSpec(scratch, "fp8");
  ASSERT_TRUE(Made(spec).ok());
  const std::string& folder = spec.output;
  EXPECT_EQ(ReasonAfter(folder, [](Json&) {}), "");
  EXPECT_EQ(ReasonAfter(folder, [](Json& p) { p["strategy"] = "int8_per_token"; }), "KV_PLAN_CONTRADICTS");
  EXPECT_EQ(ReasonAfter(folder, [](Json& p) { p["scales"] = "dynamic"; }), "KV_PLAN_CONTRADICTS");
  EXPECT_EQ(ReasonAfter(folder, [](Json& p) { p["scales"] = "magic"; }), "BAD_MANIFEST");
  EXPECT_EQ(ReasonAfter(folder, [](Json& p) { p["strategy"] = "fp7"; }), "BAD_MANIFEST");
  EXPECT_EQ(ReasonAfter(folder, [](Json& p) { p["layers_16bit"] = {-1}; }), "BAD_MANIFEST");
  EXPECT_EQ(ReasonAfter(folder, [](Json& p) { p["layers_16bit"] = 3; }), "BAD_MANIFEST");
  EXPECT_EQ(ReasonAfter(folder, [](Json& p) { p["sink_tokens"] = 1000000000; }), "BAD_MANIFEST");
  EXPECT_NE(ReasonAfter(folder, [](Json& p) { p["sink_tokens"] = "many"; }), "");
  EXPECT_EQ(ReasonAfter(folder, [](Json& p) { p = 7; }), "BAD_MANIFEST");
  // A scheme without its scales is an error, never a scale of 1; whoever names a strategy of his own may start.
  const ScratchFolder other;
  CalibrationSpec plain = KvSpec(other, "");
  ASSERT_TRUE(Made(plain).ok());
  const std::string path = plain.output + "/config.json";
  Json config = *ParseJson(Slurp(path), "config");
  config["quantization_config"]["kv_cache_scheme"] = {{"num_bits", 8}, {"type", "float"}, {"dynamic", false}};
  std::ofstream(path, std::ios::trunc) << config.dump();
  std::filesystem::remove(plain.output + "/sage_quant.json");
  EXPECT_EQ(ReasonOf(Choose(plain.output).status()), "KV_SCALES_MISSING");
  EXPECT_TRUE(Choose(plain.output, {"int8", "bf16", {}, {}, 0}).ok());
  config["quantization_config"]["kv_cache_scheme"]["num_bits"] = 4;
  std::ofstream(path, std::ios::trunc) << config.dump();
  EXPECT_EQ(ReasonOf(Choose(plain.output).status()), "KV_SCHEME_NOT_SUPPORTED");
  EXPECT_TRUE(Choose(plain.output, {"fp8", "bf16", {}, {}, 0}).ok());
}

// ModelOpt names the cache's algorithm beside the weights', in config.json or in a file of its own.
TEST(KvCalibration, AlgorithmsOfModelOptAreHonoured) {
  const ScratchFolder scratch;
  CalibrationSpec spec = KvSpec(scratch, "fp8");
  ASSERT_TRUE(Made(spec).ok());
  const std::string path = spec.output + "/config.json", side = spec.output + "/hf_quant_config.json";
  std::filesystem::remove(spec.output + "/sage_quant.json");
  Json config = *ParseJson(Slurp(path), "config");
  config["quantization_config"]["kv_cache_scheme"] = nullptr;
  const auto choose = [&](const Json& algorithm, bool beside) {
    config["quantization_config"].erase("kv_cache_quant_algo");
    std::filesystem::remove(side);
    if (beside) std::ofstream(side) << Json{{"quantization", {{"kv_cache_quant_algo", algorithm}}}}.dump();
    if (!beside) config["quantization_config"]["kv_cache_quant_algo"] = algorithm;
    std::ofstream(path, std::ios::trunc) << config.dump();
    return Choose(spec.output);
  };
  for (const bool beside : {false, true}) {
    const auto fp8 = choose("FP8", beside);
    ASSERT_TRUE(fp8.ok()) << fp8.status();
    EXPECT_EQ(fp8->plan.Name(), "fp8_e4m3");
    EXPECT_TRUE(fp8->calibrated);  // k_scale and v_scale are there
    const auto none = choose(nullptr, beside);
    ASSERT_TRUE(none.ok()) << none.status();
    EXPECT_EQ(none->plan.Name(), "bf16");
    EXPECT_EQ(ReasonOf(choose("NVFP4", beside).status()), "KV_SCHEME_NOT_SUPPORTED");
  }
}

TEST(KvCalibration, SchemesOfOtherToolsAreHonoured) {
  const std::string folder = std::string(SAGE_SOURCE_DIR) + "/../shared/data/checkpoints/ct-kv-fp8-w4";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "no shared checkpoints";
  for (const char* word : {"", "auto", "fp8", "fp8_e4m3"}) {
    const auto choice = Choose(folder, {word, "bf16", {}, {}, 0});
    ASSERT_TRUE(choice.ok()) << choice.status();
    EXPECT_TRUE(choice->calibrated);
    ASSERT_EQ(choice->plan.Name(), "fp8_e4m3");
    EXPECT_NEAR(choice->plan.layers[0].scales->k.scale.at(0), 0.0117, 1e-4);
    EXPECT_NEAR(choice->plan.layers[1].scales->v.scale.at(0), 0.0104, 1e-4);
  }
  const auto other = Choose(folder, {"int8", "bf16", {}, {}, 0});
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_FALSE(other->calibrated);
  ASSERT_EQ(other->notes.size(), 1u);
}

constexpr char kStory[] =
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big red ball in a tree. She wanted the ball, so she asked her mom for help. Her mom smiled and said, yes.";

// Log-likelihood of a story on an engine of `model`.
double Nll(EngineSpec spec, std::vector<std::string>* notes, std::string* kv) {
  spec.backend = "cpu";
  spec.max_seqs = 2;
  spec.max_model_len = 128;
  auto engine = StartLlmEngine(spec, 2, nullptr, CancelToken(), nullptr);
  if (!engine.ok()) {
    ADD_FAILURE() << engine.status();
    return 0;
  }
  *notes = (*engine)->info().notes;
  *kv = (*engine)->info().kv_quant;
  ScoreSpec score;
  const auto files = LoadTokenizer(StoriesGguf());
  const auto story = ParseDataset(kStory, "story.txt", "");
  const auto ids = TokenizeStream(*story, files.ok() ? &*files : nullptr);
  if (!ids.ok()) {
    ADD_FAILURE() << ids.status();
    return 0;
  }
  score.ids = *ids;
  const auto result = (*engine)->Score(score, CancelToken(), nullptr);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? result->nll / static_cast<double>(result->scored) : 0;
}

// Plain weights whose only quantized part is the cache: every strategy, with sinks and layers of 16 bits, on engines.
TEST(KvCalibration, KvOnlyArtifactsServeCloseToTheExactCache) {
  EngineSpec exact;
  exact.model = StoriesGguf();
  std::vector<std::string> notes;
  std::string kv;
  const double want = Nll(exact, &notes, &kv);
  EXPECT_EQ(kv, "f32");
  for (const char* word : {"fp8", "fp8_e5m2", "int8", "int8_per_channel"}) {
    for (const bool sinks : {false, true}) {
      SCOPED_TRACE(std::string(word) + (sinks ? " with sinks" : ""));
      const ScratchFolder scratch;
      CalibrationSpec spec = KvSpec(scratch, word);
      spec.weight_dtype = "none";
      spec.kv_asymmetric = std::string(word) == "int8_per_channel" && sinks;
      if (sinks) spec.kv_sink_tokens = 2, spec.kv_include = {"layers.?"}, spec.kv_exclude = {"layers.2"};
      const auto manifest = Made(spec);
      ASSERT_TRUE(manifest.ok()) << manifest.status();
      EngineSpec engine;
      engine.model = spec.output;
      const double got = Nll(engine, &notes, &kv);
      EXPECT_NE(kv, "f32");
      EXPECT_EQ(kv.find("+bf16") != kv.npos, sinks) << kv;
      EXPECT_NEAR(got, want, std::string(word) == "fp8_e5m2" ? 0.15 : 0.05);
    }
  }
}

}  // namespace
}  // namespace sage::kv_calibration_test
