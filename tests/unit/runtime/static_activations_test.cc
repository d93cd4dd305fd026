// Static 8-bit activations: scales and zero points of all batches in compressed-tensors' words, read back and served;
// and the step-local activation cache, which quantizes a value once however many layers read it.
#include <condition_variable>
#include <fstream>
#include <mutex>

#include "engine/base/json.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact_source.h"
#include "engine/runtime/start_engine.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"

namespace sage::static_activations_test {
namespace {

std::string ReasonOf(const absl::Status& status) { return GetErrorReason(status).reason; }

CalibrationSpec StaticSpec(const ScratchFolder& scratch, const std::string& dtype, const std::string& method) {
  CalibrationSpec spec = StoriesSpec(scratch);
  std::string text;
  for (int i = 0; i < 60; ++i) text += i % 3 == 0 ? "Once upon a time there was a cat. " : "Lily went to the park. ";
  spec.dataset = scratch / "text.txt";
  std::ofstream(spec.dataset) << text;
  spec.weight_dtype = spec.activation_dtype = dtype;
  spec.method = method;
  spec.samples = 6;
  spec.sequence_length = 48;
  spec.activation_scheme = "static";
  return spec;
}

absl::Status Calibrate(const CalibrationSpec& spec, int threads = 2) {
  ThreadPool pool(threads);
  return CalibrateModel(spec, pool, CancelToken(), nullptr).status();
}

absl::StatusOr<std::shared_ptr<InferenceEngine>> Start(const std::string& model, const std::string& attn = "",
                                                       const std::string& mlp = "") {
  EngineSpec spec;
  spec.model = model;
  spec.backend = "cpu";
  spec.attn_quantization = attn;
  spec.mlp_quantization = mlp;
  spec.max_seqs = 2;
  spec.max_model_len = 128;
  return StartLlmEngine(spec, 2, nullptr, CancelToken(), nullptr);
}

double Nll(InferenceEngine& engine) {
  ScoreSpec score;
  for (int i = 0; i < 100; ++i) score.ids.push_back(i == 0 ? 1 : 403 + i * i % 37);
  const auto result = engine.Score(score, CancelToken(), nullptr);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? result->nll / static_cast<double>(result->scored) : 0;
}

TEST(StaticActivations, EveryRuleIsWrittenReadBackAndServed) {
  const auto exact = Start(StoriesGguf());
  ASSERT_TRUE(exact.ok()) << exact.status();
  const double want = Nll(**exact);
  for (const char* method : {"minmax", "percentile", "mse", "kl"}) {
    for (const bool asymmetric : {false, true}) {
      SCOPED_TRACE(std::string(method) + (asymmetric ? " with zero points" : ""));
      const ScratchFolder scratch;
      CalibrationSpec spec = StaticSpec(scratch, "int8", method);
      spec.activation_asymmetric = asymmetric;
      spec.clip_ratio = std::string(method) == "percentile" ? 1e-4 : 0;
      ASSERT_TRUE(Calibrate(spec).ok()) << Calibrate(spec);
      const Json config = *ParseJson(Slurp(spec.output + "/config.json"), "config");
      const Json& activations = config["quantization_config"]["config_groups"]["group_0"]["input_activations"];
      EXPECT_EQ(activations["dynamic"], false);
      EXPECT_EQ(activations["strategy"], "tensor");
      EXPECT_EQ(activations["symmetric"], !asymmetric);
      const auto written = ArtifactSource::Open(spec.output);
      ASSERT_TRUE(written.ok()) << written.status();
      std::vector<float> scales;
      for (const LinearSlot& slot : (*written)->ShardLinears(1)) {
        const auto stored = (*written)->Stored(slot);
        ASSERT_TRUE(stored.ok()) << stored.status();
        ASSERT_EQ(stored->tensors.count("input_scale"), 1u) << slot.name;
        EXPECT_EQ(stored->tensors.count("input_zero_point"), asymmetric ? 1u : 0u) << slot.name;
        float scale = 0;
        ASSERT_TRUE(ToFloat(stored->tensors.at("input_scale"), &scale).ok());
        EXPECT_GT(scale, 0.0f);
        scales.push_back(scale);
      }
      EXPECT_EQ(scales[0], scales[1]);  // q, k and v read one value
      EXPECT_EQ(scales[0], scales[2]);
      const auto engine = Start(spec.output);
      ASSERT_TRUE(engine.ok()) << engine.status();
      EXPECT_NEAR(Nll(**engine), want, 0.25);
    }
  }
}

TEST(StaticActivations, Fp8) {
  const ScratchFolder scratch;
  const CalibrationSpec spec = StaticSpec(scratch, "fp8", "minmax");
  ASSERT_TRUE(Calibrate(spec).ok()) << Calibrate(spec);
  const auto engine = Start(spec.output), exact = Start(StoriesGguf());
  ASSERT_TRUE(engine.ok() && exact.ok()) << engine.status();
  EXPECT_EQ((*engine)->info().quantization, "fp8_w8a8");
  EXPECT_NEAR(Nll(**engine), Nll(**exact), 0.25);
}

TEST(StaticActivations, ThreadsChangeNoByte) {
  const ScratchFolder scratch;
  CalibrationSpec spec = StaticSpec(scratch, "int8", "kl");
  ASSERT_TRUE(Calibrate(spec, 1).ok());
  const auto whole = FolderBytes(spec.output);
  spec.output = scratch / "other";
  ASSERT_TRUE(Calibrate(spec, 3).ok());
  EXPECT_EQ(FolderBytes(spec.output), whole);
}

TEST(StaticActivations, WordsThatCannotBeHonouredAreRefused) {
  const ScratchFolder scratch;
  const auto reason = [&](auto change) {
    CalibrationSpec spec = StaticSpec(scratch, "int8", "minmax");
    change(spec);
    return ReasonOf(Calibrate(spec));
  };
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.activation_scheme = "lazy"; }), "BAD_ACTIVATION_SCHEME");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.dataset.clear(); }), "DATASET_NEEDED");
  EXPECT_EQ(reason([](CalibrationSpec& s) { s.activation_dtype = ""; }), "STATIC_ACTIVATIONS_NOT_SUPPORTED");
  EXPECT_EQ(reason([](CalibrationSpec& s) {
              s.activation_dtype = "", s.activation_scheme = "";
              s.activation_asymmetric = true;
            }),
            "ACTIVATION_ZERO_POINT_NOT_SUPPORTED");
  EXPECT_EQ(reason([](CalibrationSpec& s) {
              s.weight_dtype = s.activation_dtype = "fp8";
              s.activation_asymmetric = true;
            }),
            "ACTIVATION_ZERO_POINT_NOT_SUPPORTED");
}

// q, k, v read one value; gate and up another; o and down one each: four values a layer and seven readers.
TEST(ActivationCache, CountsEveryReaderUnderMixedStrategies) {
  const std::pair<const char*, const char*> kinds[] = {
      {"int8_w8a8", "int8_w8a8"}, {"int4_w4a16", "int8_w8a16"}, {"fp8_w8a8", "int4_w4a8"}};
  for (const auto& [attn, mlp] : kinds) {
    const auto engine = Start(StoriesGguf(), attn, mlp);
    ASSERT_TRUE(engine.ok()) << engine.status();
    GenerateSpec generate;
    generate.prompt_ids = {1, 403, 404};
    generate.sampling.temperature = 0;
    generate.max_tokens = 9;
    generate.ignore_eos = true;
    std::mutex mutex;
    std::condition_variable done;
    bool last = false;
    ASSERT_TRUE((*engine)
                    ->Submit(generate,
                             [&](const GenerationEvent& event) {
                               std::lock_guard<std::mutex> lock(mutex);
                               last = last || event.last;
                               done.notify_all();
                             })
                    .ok());
    {
      std::unique_lock<std::mutex> lock(mutex);
      done.wait(lock, [&] { return last; });
    }
    (*engine)->Stop(absl::InfiniteFuture());
    const EngineStats stats = (*engine)->stats();
    EXPECT_GE(stats.steps_total, 9);
    EXPECT_EQ(stats.activation_misses_total, 4 * 5 * stats.steps_total) << attn << " " << mlp;
    EXPECT_EQ(stats.activation_hits_total, 3 * 5 * stats.steps_total) << attn << " " << mlp;
  }
}

}  // namespace
}  // namespace sage::static_activations_test
