// How an engine is sized and resolved, what StartEngine refuses, and the figures of the memory check.
#include "engine/runtime/start_engine.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "engine/runtime/memory_limit.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"
#include "tests/unit/runtime/fake_decoder.h"
#include "tests/unit/runtime/tiny_model.h"

namespace sage {
namespace {

constexpr int64_t kPageBytes = 1000;
std::string Reason(const absl::Status& status) { return GetErrorReason(status).reason; }

TEST(SizeKv, DefaultsToSixteenThousandTokens) {
  EngineSpec spec;
  const auto kv = SizeKv(spec, 131072, kPageBytes, 16);
  ASSERT_TRUE(kv.ok());
  EXPECT_EQ(kv->pages, 1024);
  EXPECT_EQ(kv->max_model_len, 16384);
  EXPECT_TRUE(kv->lowered);
  spec.max_model_len = 40000;  // asked for: the default grows
  const auto longer = SizeKv(spec, 131072, kPageBytes, 16);
  EXPECT_EQ(longer->pages, 2500);
  EXPECT_EQ(longer->max_model_len, 40000);
  EXPECT_FALSE(longer->lowered);
}

TEST(SizeKv, TakesNoMoreThanAllSequencesCanUse) {
  EngineSpec spec;
  spec.max_seqs = 4;
  const auto kv = SizeKv(spec, 512, kPageBytes, 16);
  EXPECT_EQ(kv->pages, 128);
  EXPECT_EQ(kv->max_model_len, 512);
  spec.max_seqs = 1;
  EXPECT_EQ(SizeKv(spec, 100, kPageBytes, 16)->pages, 7);
}

TEST(SizeKv, GivenMemoryBoundsTheContext) {
  EngineSpec spec;
  spec.kv_bytes = 10 * kPageBytes + 999;
  const auto kv = SizeKv(spec, 2048, kPageBytes, 16);
  EXPECT_EQ(kv->pages, 10);
  EXPECT_EQ(kv->max_model_len, 160);
  EXPECT_TRUE(kv->lowered);
  spec.max_model_len = 161;
  EXPECT_EQ(Reason(SizeKv(spec, 2048, kPageBytes, 16).status()), "KV_MEMORY_TOO_SMALL");
  spec.max_model_len = 0;
  spec.kv_bytes = 10;
  EXPECT_EQ(Reason(SizeKv(spec, 2048, kPageBytes, 16).status()), "KV_MEMORY_TOO_SMALL");
  spec.kv_bytes = 0;
  spec.max_model_len = 2049;
  EXPECT_EQ(Reason(SizeKv(spec, 2048, kPageBytes, 16).status()), "CONTEXT_TOO_LONG");
}

TEST(ContextLimit, RopeScalingsThatExtend) {
  DecoderConfig config;
  config.max_position = 1000;
  EXPECT_EQ(ContextLimit(config), 1000);
  config.rope.factor = 4;
  config.rope.kind = "llama3";
  EXPECT_EQ(ContextLimit(config), 1000);
  config.rope.kind = "dynamic";
  EXPECT_EQ(ContextLimit(config), 4000);
  config.rope.kind = "yarn";
  config.rope.original_max_position = 500;
  EXPECT_EQ(ContextLimit(config), 2000);
  config.rope.original_max_position = 100;
  EXPECT_EQ(ContextLimit(config), 1000);
}

TEST(ResolveLoadSpec, NoneForOnePartLeavesItAsStored) {
  auto load = ResolveLoadSpec("int8_w8a16", "", "");
  ASSERT_TRUE(load.ok()) << load.status();
  EXPECT_EQ(load->strategy, "int8_w8a16");
  load = ResolveLoadSpec("int8_w8a16", "none", "");
  EXPECT_EQ(load->strategy, "");
  EXPECT_EQ(load->attn_strategy, "");
  EXPECT_EQ(load->mlp_strategy, "int8_w8a16");
  load = ResolveLoadSpec("int8_w8a16", "none", "none");
  EXPECT_EQ(load->strategy + load->attn_strategy + load->mlp_strategy, "");
  EXPECT_FALSE(ResolveLoadSpec("int9", "", "").ok());
}

TEST(StartEngine, RefusesWithAReason) {
  const auto start = [](auto&& change) {
    EngineSpec spec;
    spec.model = "no such folder";
    change(spec);
    return StartLlmEngine(spec, 1, nullptr, CancelToken(), nullptr).status();
  };
  EXPECT_EQ(Reason(start([](EngineSpec&) {})), "MODEL_NOT_FOUND");
  const absl::Status draft = start([](EngineSpec& s) { s.draft_mode = "eagle"; });
  EXPECT_EQ(Reason(draft), "DRAFT_MODE_UNSUPPORTED");
  EXPECT_TRUE(absl::IsUnimplemented(draft));
  const absl::Status backend = start([](EngineSpec& s) { s.backend = "abacus"; });
  EXPECT_EQ(Reason(backend), "UNKNOWN_BACKEND");
  EXPECT_NE(backend.message().find("cpu"), std::string::npos);
  const absl::Status absent = start([](EngineSpec& s) { s.backend = "ascend"; });
  EXPECT_TRUE(absl::IsUnimplemented(absent));
  EXPECT_EQ(Reason(absent), "BACKEND_ABSENT");
  EXPECT_NE(absent.message().find("use backend cpu"), std::string::npos) << absent;
  EXPECT_EQ(Reason(start([](EngineSpec& s) { s.max_seqs = 0; })), "OUT_OF_RANGE");
  EXPECT_EQ(Reason(start([](EngineSpec& s) { s.kv_quantization = "int5"; })), "UNKNOWN_KV_STRATEGY");
  EXPECT_EQ(Reason(start([](EngineSpec& s) { s.quantization = "int5"; })), "UNKNOWN_QUANTIZATION");
}

// lm_head follows head_quantization alone, is told in the bindings and the notes, and a tied table stays as it is.
TEST(StartEngine, HeadIsQuantizedOnlyWhenAsked) {
  const ScratchFolder scratch;
  const std::string folder = scratch / "tiny";
  std::filesystem::create_directory(folder);
  ASSERT_TRUE(WriteTinyModel(folder, TinySizes()));
  const auto start = [&](const std::string& all, const std::string& head) {
    EngineSpec spec;
    spec.model = folder;
    spec.backend = "cpu";
    spec.quantization = all;
    spec.head_quantization = head;
    return StartLlmEngine(spec, 2, nullptr, CancelToken(), nullptr);
  };
  int64_t plain_bytes = 0;
  for (const std::string head : {"", "none", "int8", "int8_w8a16", "bf16"}) {
    const auto engine = start("int4", head);
    ASSERT_TRUE(engine.ok()) << engine.status();
    const EngineInfo& info = (*engine)->info();
    const LinearBinding& bound = info.bindings.back();
    const bool eight = head.rfind("int8", 0) == 0;
    EXPECT_EQ(bound.layer, "lm_head");
    EXPECT_EQ(bound.strategy, eight ? "int8_w8a16" : "bf16") << head;
    EXPECT_EQ(info.quantization, "int4_w4a16");
    EXPECT_EQ(absl::StrContains(absl::StrJoin(info.notes, "; "), "lm_head"), eight || head == "bf16") << head;
    if (head.empty()) plain_bytes = info.weight_bytes;
    EXPECT_EQ(info.weight_bytes, plain_bytes + (eight ? static_cast<int64_t>(bound.weight_bytes) : 0)) << head;
    GenerateSpec generate;
    generate.prompt_ids = {1, 2, 3};
    generate.max_tokens = 4;
    generate.ignore_eos = true;
    Collector collector;
    ASSERT_TRUE((*engine)->Submit(generate, collector.sink()).ok());
    EXPECT_TRUE(collector.Wait().status.ok());
  }
  EXPECT_EQ(Reason(start("", "int5").status()), "UNKNOWN_QUANTIZATION");
}

// Greedy ids of a story with the KV strategy `word`, its prompt in chunks of `step_tokens`; `kv` is what was chosen.
std::vector<int32_t> Story(const std::string& word, int64_t step_tokens, std::string* kv, int64_t* kv_bytes) {
  EngineSpec spec;
  spec.model = StoriesGguf();
  spec.backend = "cpu";
  spec.kv_quantization = word;
  spec.max_seqs = 2;
  spec.max_model_len = 128;
  spec.max_step_tokens = step_tokens;
  auto engine = StartLlmEngine(spec, 2, nullptr, CancelToken(), nullptr);
  if (!engine.ok()) {
    ADD_FAILURE() << word << ": " << engine.status();
    return {};
  }
  *kv = (*engine)->info().kv_quant;
  *kv_bytes = (*engine)->info().kv_bytes;
  GenerateSpec generate;
  for (int i = 0; i < 37; ++i) generate.prompt_ids.push_back(i == 0 ? 1 : 403 + i % 5);
  generate.sampling.temperature = 0;
  generate.max_tokens = 40;
  generate.ignore_eos = true;
  Collector collector;
  EXPECT_TRUE((*engine)->Submit(generate, collector.sink()).ok());
  EXPECT_TRUE(collector.Wait().status.ok());
  return collector.choices[0].ids;
}

TEST(StartEngine, KvWordsChooseStrategiesThatServe) {
  const std::pair<const char*, const char*> words[] = {{"none", "f32"},
                                                       {"auto", "f32"},
                                                       {"fp8", "fp8_e4m3"},
                                                       {"int8", "int8_per_token"},
                                                       {"fp8_e4m3", "fp8_e4m3"},
                                                       {"fp8_e5m2", "fp8_e5m2"},
                                                       {"bf16", "bf16"},
                                                       {"int8_per_token", "int8_per_token"},
                                                       {"int8_per_channel", "int8_per_channel"}};
  std::string kv;
  int64_t exact_bytes = 0, bytes = 0;
  const std::vector<int32_t> exact = Story("f32", 512, &kv, &exact_bytes);
  ASSERT_EQ(exact.size(), 40u);
  for (const auto& [word, strategy] : words) {
    const std::vector<int32_t> whole = Story(word, 512, &kv, &bytes);
    EXPECT_EQ(kv, strategy) << word;
    EXPECT_LE(bytes, exact_bytes * (kv == "f32" ? 1.0 : kv == "bf16" ? 0.5 : 0.4)) << word;
    // Chunks of the prompt change nothing, and the first ids are those of the exact cache.
    EXPECT_EQ(Story(word, 8, &kv, &bytes), whole) << word;
    for (size_t i = 0; i < 4 && i < whole.size(); ++i) EXPECT_EQ(whole[i], exact[i]) << word << " id " << i;
  }
}

TEST(Memory, ReadsMemAvailable) {
  EXPECT_EQ(ParseMemAvailable("MemTotal: 10 kB\nMemAvailable:    2048 kB\nBuffers: 1 kB\n"), 2048 * 1024);
  EXPECT_EQ(ParseMemAvailable("MemTotal: 10 kB\n"), -1);
  EXPECT_GT(AvailableMemory(), 0);
}

}  // namespace
}  // namespace sage
