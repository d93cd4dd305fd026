// Inverse frequencies and rotation tables against the operator tables that transformers recorded.
#include "engine/decoder/rope.h"

#include <cmath>
#include <fstream>

#include "engine/decoder/hf_config.h"
#include "gtest/gtest.h"
#include "tests/unit/decoder/golden_data.h"

namespace sage {
namespace {

TEST(RopeTest, DynamicBaseIsStatelessAndBeginsPastTheLimit) {
  RopeSpec spec;
  spec.kind = "dynamic";
  spec.factor = 4.0;
  const Rope rope(spec, 16, 64);
  std::vector<float> at_limit(8), past(8), again(8);
  rope.InverseFrequencies(64, at_limit.data());
  rope.InverseFrequencies(65, past.data());
  rope.InverseFrequencies(64, again.data());
  EXPECT_EQ(at_limit, again);
  EXPECT_EQ(at_limit[0], 1.0f);
  EXPECT_LT(past[7], at_limit[7]);
}

TEST(RopeTest, PromptPositionsShareOneBase) {
  RopeSpec spec;
  spec.kind = "dynamic";
  spec.factor = 2.0;
  const Rope rope(spec, 8, 16);
  // Rows 0..39 of a 40-position prompt in one piece and in two must agree bit for bit.
  std::vector<float> cos_whole(40 * 4), sin_whole(40 * 4), cos_parts(40 * 4), sin_parts(40 * 4);
  const SequenceSlice whole[] = {{.row_begin = 0, .rows = 40, .context = 0, .prompt_length = 40}};
  rope.FillTables(whole, cos_whole.data(), sin_whole.data());
  const SequenceSlice parts[] = {{.row_begin = 0, .rows = 13, .context = 0, .prompt_length = 40},
                                 {.row_begin = 13, .rows = 27, .context = 13, .prompt_length = 40}};
  rope.FillTables(parts, cos_parts.data(), sin_parts.data());
  EXPECT_EQ(cos_whole, cos_parts);
  EXPECT_EQ(sin_whole, sin_parts);
}

// The recorded set's model, as a config.json would say it.
Rope RopeOf(const nlohmann::json& set) {
  const nlohmann::json config = {{"model_type", "llama"},
                                 {"hidden_size", 64},
                                 {"intermediate_size", 64},
                                 {"num_hidden_layers", 1},
                                 {"vocab_size", 8},
                                 {"num_attention_heads", 1},
                                 {"head_dim", set["head_dim"]},
                                 {"max_position_embeddings", set["max_position_embeddings"]},
                                 {"rope_parameters", set["rope_parameters"]}};
  const auto parsed = ParseHfConfig(config, nlohmann::json::object(), {.architecture = "llama"});
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return Rope(parsed->rope, parsed->D, parsed->max_position);
}

void ExpectFrequencies(const std::string& what, const std::vector<float>& want, const std::vector<float>& got) {
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i] / want[i], 1.0f, 1e-6f) << what << " " << i;
}

TEST(RopeTest, MatchesTheRecordedTables) {
  if (!HaveGolden()) GTEST_SKIP() << "shared golden data is absent";
  const GoldenTensors tensors(GoldenFolder() + "/ops.safetensors");
  std::ifstream in(GoldenFolder() + "/ops.json");
  const auto ops = nlohmann::json::parse(in);
  for (const auto& [name, set] : ops["rope"].items()) {
    const std::string prefix = "rope." + name + ".";
    const Rope rope = RopeOf(set);
    const size_t half = set["head_dim"].get<size_t>() / 2;
    EXPECT_NEAR(rope.attention_scaling(), set["attention_scaling"].get<double>(), 1e-6) << name;
    std::vector<float> got(half);
    if (set.contains("seq_len")) {
      for (const int64_t length : set["seq_len"]) {
        rope.InverseFrequencies(length, got.data());
        ExpectFrequencies(name, tensors.Get<float>(prefix + "inv_freq.seq_len_" + std::to_string(length)), got);
      }
      continue;
    }
    rope.InverseFrequencies(1, got.data());
    ExpectFrequencies(name, tensors.Get<float>(prefix + "inv_freq"), got);
    const auto cos = tensors.Get<float>(prefix + "cos"), sin = tensors.Get<float>(prefix + "sin");
    for (size_t p = 0; p < set["positions"].size(); ++p) {
      const int64_t position = set["positions"][p];
      std::vector<float> c(half), s(half);
      const SequenceSlice slice[] = {{.row_begin = 0, .rows = 1, .context = position}};
      rope.FillTables(slice, c.data(), s.data());
      // One ulp of inv_freq turns into this much angle.
      const float tolerance = 2e-6f + 1.3e-7f * static_cast<float>(position);
      for (size_t i = 0; i < half; ++i) {
        EXPECT_NEAR(c[i], cos[p * 2 * half + i], tolerance) << name << " position " << position << " " << i;
        EXPECT_NEAR(s[i], sin[p * 2 * half + i], tolerance) << name << " position " << position << " " << i;
      }
    }
  }
}

}  // namespace
}  // namespace sage
