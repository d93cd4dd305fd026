// How an engine is sized and resolved, what StartEngine refuses, and the figures of the memory check.
#include "engine/runtime/start_engine.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "engine/api/device_memory.h"
#include "engine/base/status.h"
#include "engine/runtime/memory_limit.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"
#include "tests/unit/runtime/fake_decoder.h"
#include "tests/unit/runtime/tiny_model.h"

namespace sage::start_engine_test {
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

// Patterns go over the words for all, attention and MLP; the last that matches counts, and none keeps what is stored.
TEST(StartEngine, ModulesTakeTheStrategyOfTheirPattern) {
  const ScratchFolder scratch;
  const std::string folder = scratch / "tiny";
  std::filesystem::create_directory(folder);
  ASSERT_TRUE(WriteTinyModel(folder, TinySizes()));
  EngineSpec spec;
  spec.model = folder;
  spec.backend = "cpu";
  spec.quantization = "int4";
  spec.mlp_quantization = "fp8";
  spec.layer_quantization = {
      {"*_proj", "nf4"}, {"*.self_attn.*", "int8"}, {"*.down_proj", "none"}, {"*.k_proj", "int4"}};
  const auto engine = StartLlmEngine(spec, 2, nullptr, CancelToken(), nullptr);
  ASSERT_TRUE(engine.ok()) << engine.status();
  for (const LinearBinding& bound : (*engine)->info().bindings) {
    const std::string module = bound.layer.substr(bound.layer.rfind('.') + 1);
    const std::string want = module == "k_proj"                                               ? "int4_w4a16"
                             : module == "q_proj" || module == "v_proj" || module == "o_proj" ? "int8_w8a16"
                             : module == "gate_proj" || module == "up_proj"                   ? "nf4_w4a16"
                                                                                              : "bf16";
    EXPECT_EQ(bound.strategy, want) << bound.layer;
  }
  const auto reason = [&](std::string pattern, std::string name) {
    EngineSpec wrong = spec;
    wrong.layer_quantization = {{std::move(pattern), std::move(name)}};
    return Reason(StartLlmEngine(wrong, 2, nullptr, CancelToken(), nullptr).status());
  };
  EXPECT_EQ(reason("*.qkv_proj", "int8"), "PATTERN_MATCHES_NOTHING");
  EXPECT_EQ(reason("lm_head", "int8"), "PATTERN_MATCHES_NOTHING");
  EXPECT_EQ(reason("*.q_proj", "int5"), "UNKNOWN_QUANTIZATION");
}

// Weights that are read from the map in every step: cutting the file fails the requests and the engine, not the
// process.
TEST(StartEngine, ACutModelFileFailsTheEngineAndNothingElse) {
  const ScratchFolder scratch;
  for (const char* name : {"cut", "whole"}) {
    std::filesystem::create_directory(scratch / name);
    ASSERT_TRUE(WriteTinyModel(scratch / name, TinySizes()));
  }
  const auto start = [&](const char* name) {
    EngineSpec spec;
    spec.model = scratch / name;
    spec.backend = "cpu";
    spec.prefix_cache = false;
    return *StartLlmEngine(spec, 2, nullptr, CancelToken(), nullptr);
  };
  const auto cut = start("cut"), whole = start("whole");
  const auto generate = [](InferenceEngine& engine) {
    GenerateSpec spec;
    spec.prompt_ids = {1, 2, 3};
    spec.max_tokens = 4;
    spec.ignore_eos = true;
    spec.sampling.temperature = 0;
    Collector collector;
    const auto handle = engine.Submit(spec, collector.sink());
    if (!handle.ok()) return handle.status();
    return collector.Wait().status;
  };
  ASSERT_TRUE(generate(*cut).ok());
  std::filesystem::resize_file(scratch / "cut/model.safetensors", 100);
  const absl::Status status = generate(*cut);
  EXPECT_EQ(Reason(status), "MODEL_FILE_CHANGED") << status;
  EXPECT_EQ(cut->info().state, "FAILED");
  EXPECT_EQ(Reason(cut->info().error), "MODEL_FILE_CHANGED");
  EXPECT_EQ(Reason(generate(*cut)), "MODEL_FILE_CHANGED");
  EXPECT_TRUE(generate(*whole).ok());
  EXPECT_EQ(whole->info().state, "RUNNING");
}

TEST(StartEngine, AnArtifactServesOnlyTheModelItWasMadeFrom) {
  const ScratchFolder scratch;
  const auto write = [&](const char* name, const TinySizes& sizes) {
    std::filesystem::create_directory(scratch / name);
    return WriteTinyModel(scratch / name, sizes);
  };
  TinySizes larger;
  larger.ffn = 96;
  ASSERT_TRUE(write("model", TinySizes()) && write("larger", larger) && write("copy", TinySizes()));
  CalibrationSpec calibration = StoriesSpec(scratch);
  calibration.model = scratch / "model";
  calibration.weight_dtype = "int8";
  ThreadPool threads(2);
  ASSERT_TRUE(CalibrateModel(calibration, threads, {}, nullptr).ok());
  const std::string again = scratch / "f32", twice = scratch / "twice";
  ASSERT_TRUE(ConvertArtifact({calibration.output, "f32", again}, threads, {}, nullptr).ok());
  CalibrationSpec second = calibration;
  second.model = again;
  second.output = twice;
  ASSERT_TRUE(CalibrateModel(second, threads, {}, nullptr).ok());
  const auto start = [&](const std::string& model, const std::string& artifact) {
    EngineSpec spec;
    spec.model = scratch / model;
    spec.quantization = artifact;
    spec.backend = "cpu";
    return StartLlmEngine(spec, 1, nullptr, CancelToken(), nullptr).status();
  };
  EXPECT_TRUE(start("model", calibration.output).ok());
  EXPECT_TRUE(start("model", again).ok());
  EXPECT_TRUE(start("model", twice).ok());              // made from what was made from it
  EXPECT_TRUE(start("copy", calibration.output).ok());  // the same bytes elsewhere
  const absl::Status sizes = start("larger", calibration.output);
  EXPECT_EQ(Reason(sizes), "ARTIFACT_OF_ANOTHER_MODEL") << sizes;
  EXPECT_NE(sizes.message().find("ffn 96"), std::string::npos) << sizes;
  // A finetune: the same shapes, one value more than before.
  std::string bytes = Slurp(scratch / "copy/model.safetensors");
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  std::ofstream(scratch / "copy/model.safetensors", std::ios::binary) << bytes;
  EXPECT_EQ(Reason(start("copy", calibration.output)), "ARTIFACT_OF_ANOTHER_MODEL");
  EXPECT_TRUE(start("model", calibration.output).ok());
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

// The least of the machine and of every group above the process counts, in both versions of control groups.
TEST(Memory, ReadsControlGroupsOfBothVersions) {
  const ScratchFolder scratch;
  const auto write = [&](const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(scratch / path).parent_path());
    std::ofstream(scratch / path) << text;
  };
  const std::string root = scratch / "root";
  write("root/proc/meminfo", "MemAvailable: 1000 kB\n");
  EXPECT_EQ(SystemMemory(root), 1000 * 1024);

  write("root/proc/self/cgroup", "4:memory:/a/b\n1:cpu,cpuacct:/c\n0::/\n");
  const std::string one = "root/sys/fs/cgroup/memory/a";
  write(one + "/b/memory.limit_in_bytes", "9223372036854771712\n");  // "no limit" of version 1
  write(one + "/b/memory.usage_in_bytes", "5000\n");
  write(one + "/memory.limit_in_bytes", "300000\n");
  write(one + "/memory.usage_in_bytes", "120000\n");
  write(one + "/memory.stat", "inactive_file 7\ntotal_inactive_file 20000\n");
  EXPECT_EQ(SystemMemory(root), 200000);

  write("root/proc/self/cgroup", "0::/a/b\n");
  write("root/sys/fs/cgroup/a/b/memory.max", "max\n");
  write("root/sys/fs/cgroup/a/memory.max", "400000\n");
  write("root/sys/fs/cgroup/a/memory.current", "390000\n");
  write("root/sys/fs/cgroup/a/memory.stat", "active_file 9\ninactive_file 1000\n");
  EXPECT_EQ(SystemMemory(root), 11000);
}

// What was promised and not touched is not promised again; what was touched is the system's to count.
TEST(Memory, PromisesCountUntilTheyAreTouched) {
  constexpr int64_t kBytes = int64_t{256} << 20, kSlack = int64_t{96} << 20;  // others use the machine meanwhile
  int64_t before = 0, after = 0;
  ASSERT_EQ(MemoryPromise::Take(int64_t{1} << 60, 1, &before), nullptr);
  const std::unique_ptr<MemoryPromise> promise = MemoryPromise::Take(kBytes, kBytes, &before);
  if (promise == nullptr) GTEST_SKIP() << "less than 256 MiB are free";
  EXPECT_NEAR(static_cast<double>(SystemMemory() - AvailableMemory()), kBytes, kSlack);
  absl::StatusOr<DeviceBuffer> buffer = HostMemory().Allocate(kBytes);
  ASSERT_TRUE(buffer.ok());
  promise->LiesAt({absl::Span<const uint8_t>(buffer->as<uint8_t>(), kBytes)});
  EXPECT_NEAR(static_cast<double>(SystemMemory() - AvailableMemory()), kBytes, kSlack);
  std::memset(buffer->as<uint8_t>(), 1, kBytes);
  EXPECT_NEAR(static_cast<double>(SystemMemory() - AvailableMemory()), 0, kSlack);
  EXPECT_EQ(MemoryPromise::Take(int64_t{1} << 60, 1, &after), nullptr);
}

// Two engines are not promised the same memory, though the first has touched none of its pages.
TEST(Memory, AnEngineKeepsItsKvMemory) {
  const ScratchFolder scratch;
  std::filesystem::create_directory(scratch / "tiny");
  ASSERT_TRUE(WriteTinyModel(scratch / "tiny", TinySizes()));
  EngineSpec spec;
  spec.model = scratch / "tiny";
  spec.backend = "cpu";
  spec.kv_bytes = SystemMemory() / 8 * 5;
  if (spec.kv_bytes < 0) GTEST_SKIP() << "the system does not say";
  const auto first = StartLlmEngine(spec, 1, nullptr, CancelToken(), nullptr);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(Reason(StartLlmEngine(spec, 1, nullptr, CancelToken(), nullptr).status()), "INSUFFICIENT_MEMORY");
}

}  // namespace
}  // namespace sage::start_engine_test
