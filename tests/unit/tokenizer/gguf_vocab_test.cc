// The pre-tokenizer kinds that GGUF files name: each is known, and cuts where its pattern says.
#include <gtest/gtest.h>

#include "engine/tokenizer/tokenizer.h"

namespace sage {
namespace {

// Letters and digits as single tokens, and one merge that happens only when no cut falls between its halves.
Json Metadata(const std::string& pre, const std::string& left, const std::string& right) {
  Json tokens = Json::array();
  for (char c = '0'; c <= '9'; ++c) tokens.push_back(std::string(1, c));
  for (char c = 'A'; c <= 'Z'; ++c) tokens.push_back(std::string(1, c));
  for (char c = 'a'; c <= 'z'; ++c) tokens.push_back(std::string(1, c));
  tokens.push_back(left + right);
  return {{"tokenizer.ggml.model", "gpt2"},
          {"tokenizer.ggml.pre", pre},
          {"tokenizer.ggml.tokens", tokens},
          {"tokenizer.ggml.merges", Json::array({left + " " + right})}};
}

size_t CountIds(const std::string& pre, const std::string& left, const std::string& right, const std::string& text) {
  auto files = LoadGgufTokenizer(Metadata(pre, left, right));
  EXPECT_TRUE(files.ok()) << pre << ": " << files.status();
  if (!files.ok()) return 0;
  auto ids = files->tokenizer->Encode(text, false);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? ids->size() : 0;
}

TEST(GgufVocabulary, KnowsEveryKind) {
  for (const char* pre :
       {"default", "gpt-2",          "llama-bpe", "llama3", "llama-v3",  "qwen2",     "deepseek-r1-qwen", "stablelm2",
        "megrez",  "smollm",         "starcoder", "refact", "command-r", "codeshell", "exaone",           "minerva-7b",
        "falcon",  "deepseek-coder", "tekken",    "gpt-4o", "llama4",    "dbrx",      "smaug-bpe",        "chatglm-bpe",
        "glm4",    "lfm2",           "olmo",      "mpt",    "phi-2"}) {
    EXPECT_EQ(CountIds(pre, "a", "b", "ab"), 1u) << pre;
  }
  const auto unknown = LoadGgufTokenizer(Metadata("no-such-kind", "a", "b"));
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kUnimplemented);
}

// As a folder without tokenizer files: served by ids.
TEST(GgufVocabulary, NoneIsNotFound) {
  const auto none = LoadGgufTokenizer({{"tokenizer.ggml.model", "none"}});
  EXPECT_EQ(none.status().code(), absl::StatusCode::kNotFound);
  // Written without any key of a vocabulary.
  EXPECT_EQ(LoadGgufTokenizer({{"general.architecture", "llama"}}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(LoadGgufTokenizer({{"tokenizer.ggml.model", "no_vocab"}}).status().code(), absl::StatusCode::kNotFound);
  // A vocabulary without its kind is broken, not absent.
  EXPECT_EQ(LoadGgufTokenizer({{"tokenizer.ggml.tokens", Json::array({"a"})}}).status().code(),
            absl::StatusCode::kUnimplemented);
}

TEST(GgufVocabulary, CutsWhereThePatternSays) {
  EXPECT_EQ(CountIds("llama-bpe", "o", "W", "oW"), 1u);
  EXPECT_EQ(CountIds("tekken", "o", "W", "oW"), 2u);  // lower case before upper case
  EXPECT_EQ(CountIds("gpt-4o", "o", "W", "oW"), 2u);
  EXPECT_EQ(CountIds("llama-bpe", "1", "2", "12"), 1u);
  EXPECT_EQ(CountIds("tekken", "1", "2", "12"), 2u);  // digits stand alone
  EXPECT_EQ(CountIds("qwen2", "1", "2", "12"), 2u);
  EXPECT_EQ(CountIds("gpt-4o", "1", "2", "12"), 1u);  // up to three together
  EXPECT_EQ(CountIds("deepseek-llm", "1", "2", "12"), 1u);
  EXPECT_EQ(CountIds("deepseek-llm", "a", "1", "a1"), 2u);
  EXPECT_EQ(CountIds("deepseek-coder", "1", "2", "12"), 2u);
}

}  // namespace
}  // namespace sage
