// Golden models through the whole engine: greedy ids with many requests in one batch, chunked prompts and preemption.
#include <algorithm>
#include <cmath>

#include "engine/api/kv_strategy.h"
#include "engine/base/status.h"
#include "engine/runtime/start_engine.h"
#include "gtest/gtest.h"
#include "tests/unit/decoder/golden_data.h"
#include "tests/unit/runtime/fake_decoder.h"

namespace sage::golden_test {
namespace {

class GoldenEngine : public testing::TestWithParam<const char*> {};

// Six requests at once, long and short in turn; every one must follow the path of a lone transformers run.
void RunMixedBatch(InferenceEngine& engine, const GoldenTensors& want) {
  std::vector<std::unique_ptr<Collector>> collectors;
  for (int i = 0; i < 6; ++i) {
    GenerateSpec generate;
    generate.prompt_ids = want.Get<int32_t>(i % 2 == 0 ? "long.ids" : "short.ids");
    generate.sampling.temperature = 0;
    generate.max_tokens = 32;
    generate.ignore_eos = true;
    collectors.push_back(std::make_unique<Collector>());
    ASSERT_TRUE(engine.Submit(generate, collectors.back()->sink()).ok());
  }
  for (int i = 0; i < 6; ++i) {
    Collector& collector = *collectors[static_cast<size_t>(i)];
    ASSERT_TRUE(collector.Wait().status.ok()) << collector.Wait().status;
    EXPECT_EQ(collector.choices[0].ids, want.Get<int32_t>(i % 2 == 0 ? "long.greedy_ids" : "short.greedy_ids")) << i;
  }
}

TEST_P(GoldenEngine, GreedyIdsInAMixedBatch) {
  if (!HaveGolden()) GTEST_SKIP() << "shared golden data is absent";
  const std::string name = GetParam();
  const GoldenTensors want(GoldenFolder() + "/expected/" + name + ".safetensors");
  EngineSpec spec;
  spec.model = GoldenFolder() + "/models/" + name;
  spec.backend = "cpu";
  spec.kv_quantization = "f32";
  spec.max_step_tokens = 40;  // the long prompt of 96 ids takes three chunks
  spec.max_seqs = 6;
  spec.max_model_len = 128;
  spec.threads = 2;
  for (int round = 0; round < 2; ++round) {
    auto engine = StartLlmEngine(spec, 2, nullptr, CancelToken(), nullptr);
    ASSERT_TRUE(engine.ok()) << engine.status();
    EXPECT_EQ((*engine)->info().state, "RUNNING");
    EXPECT_EQ((*engine)->tokenizer(), nullptr);
    RunMixedBatch(**engine, want);
    const EngineStats stats = (*engine)->stats();
    // Again with 14 pages (224 of 510 positions): sequences wait, are preempted and computed again.
    spec.kv_bytes = (*engine)->info().kv_bytes / stats.kv_pages_total * 14;
    (*engine)->Stop(absl::InfiniteFuture());
    EXPECT_EQ((*engine)->stats().kv_pages_used, 0);
  }
}

// A prompt whose pages are there already gives the same ids and the same bits of every probability.
TEST_P(GoldenEngine, TakenOverPrefixesChangeNoBitUnderAnyKvStrategy) {
  if (!HaveGolden()) GTEST_SKIP() << "shared golden data is absent";
  const std::string name = GetParam();
  const GoldenTensors want(GoldenFolder() + "/expected/" + name + ".safetensors");
  for (const KvStrategyDef* kv : KvStrategies()) {
    EngineSpec spec;
    spec.model = GoldenFolder() + "/models/" + name;
    spec.kv_quantization = std::string(kv->name);
    spec.max_seqs = 2;
    auto engine = StartLlmEngine(spec, 2, nullptr, CancelToken(), nullptr);
    ASSERT_TRUE(engine.ok()) << engine.status();
    GenerateSpec generate;
    generate.prompt_ids = want.Get<int32_t>("long.ids");
    generate.sampling.temperature = 0;
    generate.max_tokens = 12;
    generate.ignore_eos = true;
    generate.logprobs = 3;
    Collector first, second;
    ASSERT_TRUE((*engine)->Submit(generate, first.sink()).ok());
    EXPECT_EQ(first.Wait().usage.cached_tokens, 0);
    ASSERT_TRUE((*engine)->Submit(generate, second.sink()).ok());
    EXPECT_EQ(second.Wait().usage.cached_tokens, 80);  // of 96: the page with the last id is computed
    for (size_t i = 0; i < first.choices[0].records.size(); ++i) {
      const TokenRecord &a = first.choices[0].records[i], &b = second.choices[0].records[i];
      EXPECT_EQ(a.id, b.id) << kv->name;
      EXPECT_EQ(a.logprob, b.logprob) << kv->name << " token " << i;
      EXPECT_EQ(a.top[2].logprob, b.top[2].logprob) << kv->name << " token " << i;
    }
  }
}

// Golden continuations of tiny models repeat themselves soon: many drafts are right, and the ids stay those of a lone
// greedy run; with a seed they stay those without drafts.
TEST_P(GoldenEngine, DraftsChangeTheTimeOnly) {
  if (!HaveGolden()) GTEST_SKIP() << "shared golden data is absent";
  const std::string name = GetParam();
  const GoldenTensors want(GoldenFolder() + "/expected/" + name + ".safetensors");
  std::vector<std::vector<int32_t>> sampled;
  for (const char* mode : {"none", "ngram"}) {
    EngineSpec spec;
    spec.model = GoldenFolder() + "/models/" + name;
    spec.kv_quantization = "f32";
    spec.draft_mode = mode;
    spec.max_seqs = 6;
    spec.max_model_len = 128;
    auto engine = StartLlmEngine(spec, 2, nullptr, CancelToken(), nullptr);
    ASSERT_TRUE(engine.ok()) << engine.status();
    RunMixedBatch(**engine, want);
    GenerateSpec generate;
    for (int i = 0; i < 40; ++i) generate.prompt_ids.push_back(5 + i % 4);
    generate.max_tokens = 60;
    generate.ignore_eos = true;
    generate.sampling.temperature = 0.7;
    generate.sampling.repetition_penalty = 1.1;
    generate.sampling.seed = 7;
    generate.logprobs = 0;
    Collector collector;
    ASSERT_TRUE((*engine)->Submit(generate, collector.sink()).ok());
    EXPECT_EQ(collector.Wait().usage.completion_tokens, 60);
    sampled.push_back(collector.choices[0].ids);
  }
  EXPECT_EQ(sampled[0], sampled[1]);
}

TEST(EngineProfile, CountsEveryOperatorBesideARequest) {
  if (!HaveGolden()) GTEST_SKIP() << "shared golden data is absent";
  EngineSpec spec;
  spec.model = GoldenFolder() + "/models/02-llama-gqa-tied";
  spec.max_step_tokens = 16;
  spec.max_seqs = 4;
  auto engine = StartLlmEngine(spec, 2, nullptr, CancelToken(), nullptr);
  ASSERT_TRUE(engine.ok()) << engine.status();
  GenerateSpec generate;
  generate.prompt_ids = {1, 2, 3};
  generate.max_tokens = 20;
  generate.ignore_eos = true;
  Collector beside;
  ASSERT_TRUE((*engine)->Submit(generate, beside.sink()).ok());
  ProfileSpec asked;
  asked.prompt = 40;
  asked.batch = 3;
  asked.steps = 5;
  const auto profile = (*engine)->Profile(asked, CancelToken());
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_EQ(beside.Wait().usage.completion_tokens, 20);
  EXPECT_EQ(profile->prefill.tokens, 48);
  EXPECT_EQ(profile->prefill.steps, 3);
  EXPECT_EQ(profile->decode.tokens, 15);
  EXPECT_EQ(profile->decode.steps, 5);
  EXPECT_GT(profile->read_bytes_per_second, 0);
  double seconds = 0;
  int64_t layers = 0;
  for (const ProfiledOperator& op : profile->decode.operators) {
    seconds += op.seconds;
    if (op.name == "attention") layers = op.calls / 5;
    if (op.name == "down_proj" || op.name == "attention") {
      EXPECT_GT(op.bytes, 0) << op.name;
    }
  }
  EXPECT_GT(layers, 0);
  EXPECT_LE(seconds, profile->decode.seconds);
  asked.batch = 65;
  EXPECT_EQ(GetErrorReason((*engine)->Profile(asked, CancelToken()).status()).reason, "OUT_OF_RANGE");
  asked.batch = 1;
  asked.prompt = 1 << 20;
  EXPECT_EQ(GetErrorReason((*engine)->Profile(asked, CancelToken()).status()).reason, "CONTEXT_TOO_LONG");
}

TEST_P(GoldenEngine, ScoresEqualTheGoldenLogits) {
  if (!HaveGolden()) GTEST_SKIP() << "shared golden data is absent";
  const std::string name = GetParam();
  const GoldenTensors want(GoldenFolder() + "/expected/" + name + ".safetensors");
  EngineSpec spec;
  spec.model = GoldenFolder() + "/models/" + name;
  spec.backend = "cpu";
  spec.kv_quantization = "f32";
  spec.max_step_tokens = 33;
  spec.max_seqs = 2;
  auto engine = StartLlmEngine(spec, 2, nullptr, CancelToken(), nullptr);
  ASSERT_TRUE(engine.ok()) << engine.status();
  ScoreSpec score;
  score.ids = want.Get<int32_t>("long.ids");
  const auto logits = want.Get<float>("long.logits");
  const size_t V = logits.size() / score.ids.size();
  double nll = 0;
  for (size_t i = 0; i + 1 < score.ids.size(); ++i) {
    double sum = 0;
    for (size_t v = 0; v < V; ++v) sum += std::exp(static_cast<double>(logits[i * V + v]));
    nll += std::log(sum) - logits[i * V + static_cast<size_t>(score.ids[i + 1])];
  }
  const auto result = (*engine)->Score(score, CancelToken(), nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->scored, 95);
  EXPECT_NEAR(result->nll / 95, nll / 95, 1e-3);
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenEngine,
                         testing::Values("01-llama2-mha", "02-llama-gqa-tied", "05-llama-rope-dynamic",
                                         "07-mistral-swa", "08-qwen2-tied", "09-qwen3-qk-norm"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace sage::golden_test
