// Every word of a calibration acts or is refused with its name: none is taken and forgotten.
#include <functional>
#include <set>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"
#include "engine/runtime/artifact_source.h"
#include "engine/runtime/calibrate_plan.h"
#include "engine/runtime/start_engine.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"
#include "tests/unit/runtime/tiny_model.h"

namespace sage::calibrate_words_test {
namespace {

std::string ReasonOf(const absl::Status& status) { return GetErrorReason(status).reason; }

// A model of one layer whose widths suit every format, and ids to look at.
class Words : public TinyModelTest {
 protected:
  Words() : TinyModelTest(128, 192, 32) {}

  CalibrationSpec Spec(const std::string& method = "minmax") {
    CalibrationSpec spec;
    spec.model = scratch_ / "model";
    spec.method = method;
    spec.group_size = 32;
    spec.samples = 6;
    spec.sequence_length = 48;
    spec.dataset = scratch_ / "ids.jsonl";
    spec.work_dir = scratch_ / "work";
    spec.output = scratch_ / ("artifact-" + std::to_string(++made_));
    return spec;
  }
  // The digests of all layers: equal exactly when the stored weights are.
  std::set<std::string> Digests(const CalibrationSpec& spec) {
    const auto made = Run(spec);
    EXPECT_TRUE(made.ok()) << spec.method << ": " << made.status();
    std::set<std::string> out;
    if (!made.ok()) return out;
    for (const LayerResult& layer : made->layers) out.insert(layer.name + " " + layer.sha256);
    return out;
  }
  std::string Reason(const CalibrationSpec& spec) { return ReasonOf(Run(spec).status()); }
  Json Config(const CalibrationSpec& spec) {
    return ParseJson(Slurp(spec.output + "/config.json"), "config")->at("quantization_config");
  }

  int made_ = 0;
};

TEST_F(Words, ClipRatioActsUnderEveryMethod) {
  for (const char* method : {"minmax", "percentile", "mse", "smoothquant", "awq", "gptq", "awq+gptq", "awq+smoothquant",
                             "autoround", "qat"}) {
    CalibrationSpec plain = Spec(method), cut = Spec(method);
    cut.clip_ratio = 0.4;
    EXPECT_NE(Digests(plain), Digests(cut)) << method;
  }
}

// Rows of 128 inputs: without interpolation the 99.99th percentile would be their largest value.
TEST_F(Words, PercentileCutsShortRowsToo) {
  CalibrationSpec cut = Spec("percentile"), whole = Spec("minmax");
  cut.scale_precision = whole.scale_precision = "f32";  // a cut of a hundredth must not drown in bf16
  EXPECT_NE(Digests(cut), Digests(whole));
}

TEST_F(Words, KlNeedsARangeToCut) {
  EXPECT_EQ(Reason(Spec("kl")), "METHOD_HAS_NO_RANGE");
  CalibrationSpec dynamic = Spec("kl");
  dynamic.weight_dtype = dynamic.activation_dtype = "int8";
  EXPECT_EQ(Reason(dynamic), "METHOD_HAS_NO_RANGE");
  CalibrationSpec floats = Spec("kl");
  floats.weight_dtype = floats.activation_dtype = "fp8";
  floats.activation_scheme = "static";
  floats.group_size = 0;
  EXPECT_EQ(Reason(floats), "METHOD_HAS_NO_RANGE");
  CalibrationSpec cache = Spec("kl");
  cache.kv_quantization = "fp8";
  EXPECT_EQ(Reason(cache), "METHOD_HAS_NO_RANGE");
  cache.kv_quantization = "int8";
  EXPECT_TRUE(Run(cache).ok()) << Run(cache).status();
}

TEST_F(Words, ScalesOfOnePrecisionRefuseOthers) {
  CalibrationSpec spec = Spec();
  spec.group_size = 0;
  const auto reason = [&](const char* weight, const char* format, const char* scale) {
    spec.weight_dtype = weight;
    spec.format = format;
    spec.scale_precision = scale;
    spec.output = scratch_ / ("scales-" + std::to_string(++made_));
    return Reason(spec);
  };
  for (const char* scale : {"bf16", "f16"}) {
    EXPECT_EQ(reason("nf4", "", scale), "BAD_SCALE_DTYPE");
    EXPECT_EQ(reason("int8", "bitsandbytes", scale), "BAD_SCALE_DTYPE");
  }
  EXPECT_EQ(reason("int4", "gptq", "f32"), "BAD_SCALE_DTYPE");
  EXPECT_EQ(reason("int4", "gptq", "bf16"), "BAD_SCALE_DTYPE");
  EXPECT_EQ(reason("nf4", "", "f32"), "");
  EXPECT_EQ(reason("int4", "gptq", "f16"), "");
}

TEST_F(Words, OverridesOfLayersThatStayFloatAreRefused) {
  CalibrationSpec spec = Spec();
  spec.overrides = {"*.down_proj=bits:8"};
  spec.exclude = {"*.down_proj"};
  EXPECT_EQ(Reason(spec), "OVERRIDE_HAS_NO_EFFECT");
  spec.exclude.clear();
  spec.overrides = {"*.down_proj=exclude:true", "*.down_proj=bits:8"};
  EXPECT_EQ(Reason(spec), "OVERRIDE_HAS_NO_EFFECT");
  spec.overrides = {"*.down_proj=exclude:true"};
  EXPECT_TRUE(Run(spec).ok()) << Run(spec).status();
  CalibrationSpec head = StoriesSpec(scratch_);
  head.model = GoldenModel("03-llama3-rope");  // with a head of its own
  if (!IsDirectory(head.model)) GTEST_SKIP() << "no shared golden models";
  head.overrides = {"lm_head=bits:4"};
  EXPECT_EQ(ReasonOf(PlanCalibration(head).status()), "OVERRIDE_HAS_NO_EFFECT");
  head.overrides = {"lm_head=exclude:false"};
  EXPECT_EQ(ReasonOf(PlanCalibration(head).status()), "OVERRIDE_HAS_NO_EFFECT");
  head.overrides = {"lm_head=exclude:true"};
  EXPECT_TRUE(PlanCalibration(head).ok()) << PlanCalibration(head).status();
}

// Every config group says what its layers' activations are.
TEST_F(Words, StaticActivationsOfOverriddenLayers) {
  CalibrationSpec spec = Spec();
  spec.weight_dtype = spec.activation_dtype = "int8";
  spec.group_size = -1;
  spec.activation_scheme = "static";
  spec.activation_asymmetric = true;
  spec.overrides = {"*.down_proj=bits:4"};
  ASSERT_TRUE(Run(spec).ok()) << Run(spec).status();
  const Json groups = Config(spec)["config_groups"];
  ASSERT_EQ(groups.size(), 2u);
  for (const auto& [name, group] : groups.items()) {
    EXPECT_EQ(group["input_activations"]["dynamic"], false) << name;
    EXPECT_EQ(group["input_activations"]["symmetric"], false) << name;
  }
  const auto source = ArtifactSource::Open(spec.output);
  ASSERT_TRUE(source.ok());
  for (const LinearSlot& slot : (*source)->ShardLinears(0)) {
    const auto stored = (*source)->Stored(slot);
    ASSERT_TRUE(stored.ok()) << stored.status();
    EXPECT_EQ(stored->tensors.count("input_scale"), 1u) << slot.name;
    EXPECT_EQ(stored->spec.strategy, slot.kind == "down_proj" ? "int4_w4a8" : "int8_w8a8");
  }
}

// Others serve 8-bit weights with 8-bit activations by row only; a size that is asked for stays.
TEST_F(Words, EightBitLayersWithEightBitActivationsTakeRows) {
  CalibrationSpec spec = Spec();
  spec.weight_dtype = spec.activation_dtype = "int8";
  for (const int asked : {0, 64}) {
    spec.group_size = asked;
    const auto plan = PlanCalibration(spec);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(plan->linear.group_size, asked == 0 ? -1 : 64);
    EXPECT_EQ(plan->quantization_config["config_groups"]["group_0"]["weights"]["strategy"],
              asked == 0 ? "channel" : "group");
  }
  spec.activation_dtype.clear();
  spec.group_size = 0;
  EXPECT_EQ(PlanCalibration(spec)->linear.group_size, 64);
}

TEST_F(Words, Fp8WeightsByTensorByBlockAndInE5m2) {
  const auto stored = [&](const CalibrationSpec& spec) {
    EXPECT_TRUE(Run(spec).ok()) << Run(spec).status();
    const auto source = ArtifactSource::Open(spec.output);
    EXPECT_TRUE(source.ok()) << source.status();
    return *(*source)->Stored((*source)->ShardLinears(0)[0]);  // q_proj [128, 128]
  };
  CalibrationSpec spec = Spec();
  spec.group_size = 0;
  spec.weight_dtype = spec.activation_dtype = "fp8";
  const StoredLinear rows = stored(spec);
  EXPECT_EQ(rows.tensors.at("weight_scale").elements(), 128);
  CalibrationSpec tensor = spec;
  tensor.weight_granularity = "tensor";
  tensor.output = scratch_ / "tensor";
  EXPECT_EQ(stored(tensor).tensors.at("weight_scale").elements(), 1);
  EXPECT_EQ(Config(tensor)["config_groups"]["group_0"]["weights"]["strategy"], "tensor");
  CalibrationSpec block = spec;
  block.weight_granularity = "block";
  block.output = scratch_ / "block";
  const StoredLinear blocks = stored(block);
  EXPECT_EQ(blocks.tensors.at("weight_scale").elements(), 1);
  EXPECT_EQ(blocks.spec.activation_group_size, 128);
  const Json group = Config(block)["config_groups"]["group_0"];
  EXPECT_EQ(group["weights"]["block_structure"], Json({128, 128}));
  EXPECT_EQ(group["input_activations"]["strategy"], "group");
  EXPECT_EQ(group["input_activations"]["group_size"], 128);
  CalibrationSpec wide = spec;
  wide.fp8_format = "e5m2";
  wide.output = scratch_ / "e5m2";
  EXPECT_EQ(stored(wide).tensors.at("weight").dtype, DType::kF8E5M2);
  EXPECT_TRUE(stored(wide).spec.fp8_e5m2);  // so that a conversion says it again
  // Readers that know e4m3 alone must stumble over the word, not read other numbers.
  EXPECT_EQ(Config(wide)["config_groups"]["group_0"]["weights"]["float_format"], "e5m2");
  EXPECT_FALSE(Config(spec)["config_groups"]["group_0"]["weights"].contains("float_format"));
  EXPECT_EQ(rows.tensors.at("weight").dtype, DType::kF8E4M3);
}

TEST_F(Words, VariantsOfOtherStrategiesAreRefused) {
  const auto reason = [&](const char* weight, const std::function<void(CalibrationSpec&)>& change) {
    CalibrationSpec spec = Spec();
    spec.group_size = 0;
    spec.weight_dtype = weight;
    change(spec);
    return ReasonOf(PlanCalibration(spec).status());
  };
  EXPECT_EQ(reason("int4", [](CalibrationSpec& s) { s.weight_granularity = "tensor"; }), "FIELD_NOT_SUPPORTED");
  EXPECT_EQ(reason("int4", [](CalibrationSpec& s) { s.fp8_format = "e5m2"; }), "FIELD_NOT_SUPPORTED");
  EXPECT_EQ(reason("int4", [](CalibrationSpec& s) { s.double_quant = true; }), "FIELD_NOT_SUPPORTED");
  EXPECT_EQ(reason("fp8", [](CalibrationSpec& s) { s.weight_granularity = "row"; }), "BAD_WEIGHT_GRANULARITY");
  EXPECT_EQ(reason("fp8", [](CalibrationSpec& s) { s.fp8_format = "e3m4"; }), "BAD_FP8_FORMAT");
  EXPECT_EQ(reason("fp8", [](CalibrationSpec& s) { s.weight_granularity = "block", s.group_size = 64; }),
            "GROUP_SIZE_NOT_SUPPORTED");
  EXPECT_EQ(reason("fp8",
                   [](CalibrationSpec& s) {
                     s.activation_dtype = "fp8";
                     s.activation_scheme = "static";
                     s.weight_granularity = "block";
                   }),
            "FIELD_NOT_SUPPORTED");
  EXPECT_EQ(reason("int4", [](CalibrationSpec& s) { s.gptq_f64 = true; }), "F64_NEEDS_GPTQ");
  EXPECT_EQ(reason("int4", [](CalibrationSpec& s) { s.method = "awq+gptq", s.gptq_asymmetric_correction = true; }),
            "CORRECTION_NEEDS_GPTQ");
  EXPECT_EQ(reason("fp8", [](CalibrationSpec& s) { s.format = "fp8"; }), "");
  EXPECT_EQ(reason("int4", [](CalibrationSpec& s) { s.format = "fp8"; }), "UNSUPPORTED_OUTPUT_FORMAT");
}

TEST_F(Words, DoubleQuantizedScalesTakeAByte) {
  CalibrationSpec spec = Spec();
  spec.weight_dtype = "nf4";
  spec.group_size = 0;
  for (const bool twice : {false, true}) {
    spec.double_quant = twice;
    spec.output = scratch_ / (twice ? "twice" : "once");
    ASSERT_TRUE(Run(spec).ok()) << Run(spec).status();
    EXPECT_EQ(Config(spec)["bnb_4bit_use_double_quant"], twice);
    const auto source = ArtifactSource::Open(spec.output);
    ASSERT_TRUE(source.ok()) << source.status();
    const auto stored = (*source)->Stored((*source)->ShardLinears(0)[0]);
    ASSERT_TRUE(stored.ok()) << stored.status();
    EXPECT_EQ(stored->spec.double_quant, twice);
    EXPECT_EQ(stored->tensors.at("weight.absmax").dtype, twice ? DType::kU8 : DType::kF32);
  }
}

TEST_F(Words, OptionsOfGptqAct) {
  CalibrationSpec plain = Spec("gptq"), corrected = Spec("gptq"), exact = Spec("gptq");
  corrected.gptq_asymmetric_correction = true;
  exact.gptq_f64 = true;
  const auto digests = Digests(plain);
  EXPECT_NE(digests, Digests(corrected));
  EXPECT_TRUE(Run(exact).ok()) << Run(exact).status();
  const auto manifest = ReadManifest(corrected.output), of_f64 = ReadManifest(exact.output);
  ASSERT_TRUE(manifest.ok() && of_f64.ok());
  EXPECT_EQ((*manifest)["calibration_record"]["spec"]["variant"]["gptq_correction"], true);
  EXPECT_EQ((*of_f64)["calibration_record"]["spec"]["variant"]["gptq_f64"], true);
}

TEST_F(Words, TheRecordSaysHowScalesWereChosen) {
  CalibrationSpec spec = Spec("smoothquant");
  spec.weight_dtype = spec.activation_dtype = "int8";
  spec.group_size = -1;
  ASSERT_TRUE(Run(spec).ok()) << Run(spec).status();
  const auto manifest = ReadManifest(spec.output);
  ASSERT_TRUE(manifest.ok());
  int told = 0;
  for (const Json& layer : (*manifest)["calibration_record"]["layers"]) {
    if (!layer["quantized"] || layer["folded_into"] == "") continue;
    const std::string how = layer["folded_by"];
    EXPECT_TRUE(how == "none" || how.rfind("smoothquant alpha 0.", 0) == 0) << how;
    ++told;
  }
  EXPECT_EQ(told, 7);
}

TEST_F(Words, FewTokensAreNoted) {
  CalibrationSpec spec = Spec("gptq");
  spec.samples = 2;
  const auto few = Run(spec);
  ASSERT_TRUE(few.ok()) << few.status();
  ASSERT_EQ(few->notes.size(), 1u);
  EXPECT_NE(few->notes[0].find("96 tokens for layers of up to 192 inputs"), std::string::npos) << few->notes[0];
  spec = Spec("gptq");
  const auto enough = Run(spec);
  ASSERT_TRUE(enough.ok()) << enough.status();
  EXPECT_TRUE(enough->notes.empty());
}

// Log-likelihood of some ids on an engine of `model`.
double Likelihood(const std::string& model) {
  EngineSpec spec;
  spec.model = model;
  spec.backend = "cpu";
  spec.max_seqs = 1;
  spec.max_model_len = 64;
  const auto engine = StartLlmEngine(spec, 2, nullptr, {}, nullptr);
  EXPECT_TRUE(engine.ok()) << engine.status();
  if (!engine.ok()) return 0;
  ScoreSpec score;
  for (int i = 0; i < 48; ++i) score.ids.push_back(i * 7 % 40);
  const auto result = (*engine)->Score(score, CancelToken(), nullptr);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? result->nll / static_cast<double>(result->scored) : 0;
}

// Small groups, groups above 256, and those of a whole row, in every format of integers.
TEST_F(Words, AnyGroupThatDividesIsWrittenAndServed) {
  TinySizes wide;
  wide.hidden = wide.ffn = 576;
  wide.H = 6;
  wide.KH = 2;
  wide.D = 96;
  ASSERT_TRUE(MakeDirectories(scratch_ / "wide").ok());
  ASSERT_TRUE(WriteTinyModel(scratch_ / "wide", wide));
  const struct {
    const char *weight, *activation, *format;
  } cases[] = {{"int4", "", ""},     {"int4", "int8", ""}, {"int8", "", ""},   {"int8", "int8", ""},
               {"int4", "", "gptq"}, {"int8", "", "gptq"}, {"int4", "", "awq"}};
  for (const auto& [model, group] : {std::pair{"model", 8}, {"model", 4}, {"wide", 24}, {"wide", 288}}) {
    const double plain = Likelihood(scratch_ / model);
    for (const auto& c : cases) {
      SCOPED_TRACE(testing::Message() << c.weight << " " << c.activation << " " << c.format << " " << group);
      CalibrationSpec spec = Spec();
      spec.model = scratch_ / model;
      spec.weight_dtype = c.weight;
      spec.activation_dtype = c.activation;
      spec.format = c.format;
      spec.group_size = group;
      const auto made = Run(spec);
      ASSERT_TRUE(made.ok()) << made.status();
      const Json config = Config(spec);
      const Json& where = config.contains("config_groups") ? config["config_groups"]["group_0"]["weights"] : config;
      EXPECT_EQ(where["group_size"], group);
      EXPECT_NEAR(Likelihood(spec.output), plain, 0.1 * plain);
    }
  }
  for (const char* method : {"gptq", "awq"}) {
    CalibrationSpec spec = Spec(method);
    spec.group_size = 8;
    EXPECT_TRUE(Run(spec).ok()) << Run(spec).status();
  }
}

// Layers of 128 and 192 inputs: what divides one of them only is not named.
TEST_F(Words, SizesInErrorsFitEveryLayer) {
  for (const int group : {12, 48, 128, 512}) {
    CalibrationSpec spec = Spec();
    spec.group_size = group;
    const absl::Status status = PlanCalibration(spec).status();
    EXPECT_EQ(ReasonOf(status), "GROUP_SIZE_MUST_DIVIDE_K");
    EXPECT_EQ(GetErrorReason(status).metadata.at("allowed"), "64, 32, 16, 8") << group;
    EXPECT_NE(std::string(status.message()).find("every layer: 64, 32, 16, 8"), std::string::npos) << status;
  }
}

// The layout has zero points whatever was asked for.
TEST_F(Words, ZeroPointsOfAwqAreNoted) {
  for (const bool asymmetric : {false, true}) {
    CalibrationSpec spec = Spec();
    spec.format = "awq";
    spec.asymmetric = asymmetric;
    const auto made = Run(spec);
    ASSERT_TRUE(made.ok()) << made.status();
    ASSERT_EQ(made->notes.size(), asymmetric ? 0u : 1u);
    if (!asymmetric) {
      EXPECT_EQ(made->notes[0].rfind("asymmetric: awq_w4a16 always stores zero points", 0), 0u) << made->notes[0];
    }
  }
}

TEST_F(Words, MessagesNameTheUsersFileAndLine) {
  CalibrationSpec spec = Spec("gptq");
  spec.dataset_name = "mine.jsonl";
  EXPECT_TRUE(WriteFileAtomic(spec.dataset, "[1,2,3]\n[1,40]\n").ok());
  const auto status = Run(spec).status();
  EXPECT_EQ(ReasonOf(status), "DATASET_INVALID");
  EXPECT_NE(status.message().find("dataset mine.jsonl line 2: token ids must be below the vocabulary size 40, got 40"),
            absl::string_view::npos)
      << status;
}

// A zero point for each token is written, read back and served; it moves the outputs, and not far.
TEST_F(Words, DynamicActivationsWithZeroPoints) {
  const auto nll = [&](const std::string& model) {
    EngineSpec engine;
    engine.model = model;
    engine.backend = "cpu";
    engine.max_seqs = 1;
    engine.max_model_len = 64;
    const auto started = StartLlmEngine(engine, 2, nullptr, {}, nullptr);
    EXPECT_TRUE(started.ok()) << started.status();
    ScoreSpec score;
    for (int i = 0; i < 48; ++i) score.ids.push_back((11 * i + i * i) % 40);
    const auto result = (*started)->Score(score, {}, nullptr);
    EXPECT_TRUE(result.ok()) << result.status();
    return result->nll / static_cast<double>(result->scored);
  };
  for (const char* weights : {"int8", "int4"}) {
    CalibrationSpec symmetric = Spec(), asymmetric = Spec();
    symmetric.weight_dtype = asymmetric.weight_dtype = weights;
    symmetric.activation_dtype = asymmetric.activation_dtype = "int8";
    symmetric.group_size = asymmetric.group_size = -1;
    asymmetric.activation_asymmetric = true;
    ASSERT_EQ(Digests(symmetric), Digests(asymmetric));  // the weights are the same
    const Json activations = Config(asymmetric)["config_groups"]["group_0"]["input_activations"];
    EXPECT_EQ(activations["dynamic"], true);
    EXPECT_EQ(activations["symmetric"], false);
    const double a = nll(symmetric.output), b = nll(asymmetric.output);
    EXPECT_NE(a, b);
    EXPECT_NEAR(a, b, 0.05);
  }
}

}  // namespace
}  // namespace sage::calibrate_words_test
