// Each architecture's reading of config.json: "llama", "mistral", "qwen2", "qwen3"; and refusals of bad fields.
#include "engine/api/model.h"
#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sage {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

Json Config(const char* type) {
  return {{"model_type", type},     {"hidden_size", 128},       {"intermediate_size", 192},
          {"num_hidden_layers", 3}, {"num_attention_heads", 4}, {"num_key_value_heads", 2},
          {"vocab_size", 512},      {"rms_norm_eps", 1e-5},     {"max_position_embeddings", 256}};
}

DecoderConfig Parse(const Json& config, const Json& generation = Json::object()) {
  auto out = ParseModelConfig(config, generation);
  EXPECT_TRUE(out.ok()) << out.status();
  return out.ok() ? *out : DecoderConfig{};
}

TEST(ModelsTest, LlamaDefaults) {
  const DecoderConfig c = Parse(Config("llama"));
  EXPECT_EQ(c.architecture, "llama");
  EXPECT_EQ(c.D, 32);
  EXPECT_EQ(c.rope.theta, 10000.0);
  EXPECT_FALSE(c.qkv_bias || c.o_bias || c.mlp_bias || c.qk_norm || c.tied_embeddings);
  EXPECT_THAT(c.window, Each(0));
}

TEST(ModelsTest, LlamaWithoutKvHeadsHasOneAHead) {
  Json config = Config("llama");
  config.erase("num_key_value_heads");
  EXPECT_EQ(Parse(config).KH, 4);
}

TEST(ModelsTest, LlamaBiasesAndNewStyleRope) {
  Json config = Config("llama");
  config["attention_bias"] = true;
  config["mlp_bias"] = true;
  config["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 5e5}};
  const DecoderConfig c = Parse(config);
  EXPECT_TRUE(c.qkv_bias && c.o_bias && c.mlp_bias);
  EXPECT_EQ(c.rope.kind, "linear");
  EXPECT_EQ(c.rope.theta, 5e5);
}

TEST(ModelsTest, MistralSlidesInEveryLayer) {
  Json config = Config("mistral");
  config["sliding_window"] = 24;
  EXPECT_THAT(Parse(config).window, ElementsAre(24, 24, 24));
  config["sliding_window"] = nullptr;
  EXPECT_THAT(Parse(config).window, Each(0));
}

TEST(ModelsTest, Qwen2SlidesOnlyWhenAsked) {
  Json config = Config("qwen2");
  config["sliding_window"] = 24;
  config["use_sliding_window"] = false;
  config["max_window_layers"] = 1;
  DecoderConfig c = Parse(config);
  EXPECT_TRUE(c.qkv_bias);
  EXPECT_FALSE(c.o_bias);
  EXPECT_THAT(c.window, Each(0));
  config["use_sliding_window"] = true;
  c = Parse(config);
  EXPECT_THAT(c.window, ElementsAre(0, 24, 24));
}

TEST(ModelsTest, Qwen3HasHeadNormAndItsOwnHeadSize) {
  const DecoderConfig c = Parse(Config("qwen3"));
  EXPECT_TRUE(c.qk_norm);
  EXPECT_EQ(c.D, 128);
}

// What transformers' MistralConfig, Qwen2Config and Qwen3Config put where a key is absent, and where it is null.
TEST(ModelsTest, AbsentKeysMeanWhatTheirClassesSay) {
  Json bare = Config("mistral");
  bare["num_attention_heads"] = 32;
  for (const char* key : {"num_key_value_heads", "max_position_embeddings"}) bare.erase(key);
  DecoderConfig c = Parse(bare);
  EXPECT_EQ(c.KH, 8);
  EXPECT_EQ(c.max_position, 131072);
  EXPECT_THAT(c.window, Each(4096));
  bare["num_key_value_heads"] = nullptr;
  bare["sliding_window"] = nullptr;
  c = Parse(bare);
  EXPECT_EQ(c.KH, 32);
  EXPECT_THAT(c.window, Each(0));
  for (const char* type : {"qwen2", "qwen3"}) {
    bare = Config(type);
    bare["num_attention_heads"] = 64;
    for (const char* key : {"num_key_value_heads", "max_position_embeddings"}) bare.erase(key);
    c = Parse(bare);
    EXPECT_EQ(c.KH, 32) << type;
    EXPECT_EQ(c.max_position, 32768) << type;
    EXPECT_THAT(c.window, Each(0)) << type;
    bare["use_sliding_window"] = true;
    bare["max_window_layers"] = 1;
    EXPECT_THAT(Parse(bare).window, ElementsAre(0, 4096, 4096)) << type;
  }
}

TEST(ModelsTest, EndIdsComeFromTheGenerationConfigFirst) {
  Json config = Config("llama");
  config["eos_token_id"] = 2;
  EXPECT_THAT(Parse(config).eos_ids, ElementsAre(2));
  EXPECT_THAT(Parse(config, {{"eos_token_id", {7, 9}}}).eos_ids, ElementsAre(7, 9));
}

TEST(ModelsTest, RefusalsNameFieldRuleAndValue) {
  const auto refuse = [](const char* key, const Json& value, const char* words) {
    Json config = Config("llama");
    config[key] = value;
    const auto out = ParseModelConfig(config, Json::object());
    ASSERT_FALSE(out.ok()) << key;
    EXPECT_THAT(std::string(out.status().message()), HasSubstr(words));
  };
  refuse("num_hidden_layers", 0, "num_hidden_layers must be in [1, 1024], got 0");
  refuse("num_hidden_layers", 1000000000, "got 1000000000");
  refuse("num_key_value_heads", 3, "must divide");
  refuse("hidden_size", "wide", "'hidden_size' must be an integer");
  refuse("head_dim", 33, "head_dim must be even");
  refuse("hidden_act", "gelu", "hidden_act must be silu");
  refuse("rope_scaling", {{"rope_type", "longrope"}, {"factor", 2}}, "longrope");
  refuse("rope_scaling", {{"rope_type", "yarn"}}, "needs 'factor'");
  refuse("model_type", "gpt_oss", "model_type must be one of [llama, mistral, qwen2, qwen3]");
}

TEST(ModelsTest, OneListOfWeights) {
  Json config = Config("qwen3");
  config["tie_word_embeddings"] = true;
  const DecoderConfig c = Parse(config);
  const auto linears = ListLinears(c);
  ASSERT_EQ(linears.size(), 21u);
  EXPECT_EQ(linears[0].name, "model.layers.0.self_attn.q_proj");
  EXPECT_EQ(linears[0].N, 512);
  EXPECT_EQ(linears[20].name, "model.layers.2.mlp.down_proj");
  EXPECT_EQ(ListTensors(c).size(), 2u + 3u * 4u);
}

}  // namespace
}  // namespace sage
