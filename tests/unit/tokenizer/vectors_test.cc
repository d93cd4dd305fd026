// Every reference vector: ids and text must agree exactly with Hugging Face tokenizers, llama.cpp and streaming.
#include <gtest/gtest.h>

#include <sstream>

#include "engine/base/file.h"
#include "engine/tokenizer/loaders.h"
#include "engine/tokenizer/tokenizer.h"

namespace sage {
namespace {

const std::string kData = std::string(SAGE_SOURCE_DIR) + "/../shared/data/";
const std::string kTokenizers = kData + "tokenizers/";

void CheckStream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  StreamDecoder stream(tokenizer, false);
  std::string text;
  for (int32_t id : ids) text += stream.Append(id);
  text += stream.Flush();
  const std::string whole = *tokenizer.Decode(ids, false);
  EXPECT_EQ(text, whole);
  // The second half, streamed as a continuation, is what it adds to the first.
  const size_t half = ids.size() / 2;
  if (half == 0 || tokenizer.InByteRun(ids[half])) return;
  const std::string before = *tokenizer.Decode(absl::MakeConstSpan(ids).subspan(0, half), false);
  if (whole.compare(0, before.size(), before) != 0) return;  // cut inside a character
  StreamDecoder rest(tokenizer, false, /*continues=*/true);
  std::string added;
  for (size_t i = half; i < ids.size(); ++i) added += rest.Append(ids[i]);
  added += rest.Flush();
  EXPECT_EQ(before + added, whole);
}

class HfVectors : public testing::TestWithParam<const char*> {};

TEST_P(HfVectors, Agree) {
  const std::string name = GetParam();
  if (!IsDirectory(kTokenizers + name)) GTEST_SKIP() << "no shared tokenizer data";
  auto files = LoadTokenizer(kTokenizers + name);
  ASSERT_TRUE(files.ok()) << files.status();
  const Json vectors = *ParseJson(*ReadFile(kTokenizers + "vectors/" + name + ".json"), "vectors");
  int cases = 0;
  for (const Json& one : vectors["cases"]) {
    const std::string text = one["text"];
    auto ids = files->tokenizer->Encode(text, false);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, one["ids"].get<std::vector<int32_t>>()) << text.substr(0, 200);
    EXPECT_EQ(*files->tokenizer->Encode(text, true), one["ids_with_special"].get<std::vector<int32_t>>());
    EXPECT_EQ(*files->tokenizer->Decode(*ids, false), one["decoded"].get<std::string>());
    CheckStream(*files->tokenizer, *ids);
    ++cases;
  }
  EXPECT_GT(cases, 10);
}
INSTANTIATE_TEST_SUITE_P(All, HfVectors, testing::Values("gpt2", "llama2", "llama3_1"));

class GgmlVectors : public testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(GgmlVectors, Agree) {
  const std::string base = kTokenizers + "gguf/" + GetParam().first;
  if (!FileExists(base + ".inp")) GTEST_SKIP() << "no shared tokenizer data";
  auto files = LoadTokenizer(kTokenizers + GetParam().second);
  ASSERT_TRUE(files.ok()) << files.status();
  std::string inputs = *ReadFile(base + ".inp");
  std::istringstream outputs(*ReadFile(base + ".out"));
  const std::string separator = "\n__ggml_vocab_test__\n";
  std::string line;
  while (std::getline(outputs, line)) {
    const size_t end = inputs.find(separator);
    const std::string text = inputs.substr(0, end);
    inputs = end == std::string::npos ? "" : inputs.substr(end + separator.size());
    std::istringstream numbers(line);
    std::vector<int32_t> expected;
    for (int32_t id; numbers >> id;) expected.push_back(id);
    auto ids = files->tokenizer->Encode(text, false, false);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, expected) << text.substr(0, 200);
    CheckStream(*files->tokenizer, *ids);
  }
}
INSTANTIATE_TEST_SUITE_P(All, GgmlVectors,
                         testing::Values(std::pair("ggml-vocab-gpt-2.gguf", "gguf/ggml-vocab-gpt-2.gguf"),
                                         std::pair("ggml-vocab-llama-spm.gguf", "gguf/ggml-vocab-llama-spm.gguf"),
                                         std::pair("ggml-vocab-llama-bpe.gguf", "llama3_1"),
                                         std::pair("ggml-vocab-qwen2.gguf", "qwen2")));

TEST(SentencePiece, ModelAgreesWithTokenizerJson) {
  if (!FileExists(kTokenizers + "llama2/tokenizer.model")) GTEST_SKIP() << "no shared tokenizer data";
  auto model = ParseSentencePiece(*ReadFile(kTokenizers + "llama2/tokenizer.model"), Json());
  ASSERT_TRUE(model.ok()) << model.status();
  const Json vectors = *ParseJson(*ReadFile(kTokenizers + "vectors/llama2.json"), "vectors");
  for (const Json& one : vectors["cases"]) {
    const std::string text = one["text"];
    auto ids = (*model)->Encode(text, false, true);
    ASSERT_TRUE(ids.ok());
    if (text.find('<') == std::string::npos) {
      EXPECT_EQ(*ids, one["ids"].get<std::vector<int32_t>>()) << text.substr(0, 100);
    }
  }
}

TEST(Stories, BinAgreesWithModel) {
  const std::string folder = kData + "models/stories260K/";
  if (!FileExists(folder + "tok512.bin")) GTEST_SKIP() << "no shared model data";
  auto bin = ParseLlama2c(*ReadFile(folder + "tok512.bin"));
  ASSERT_TRUE(bin.ok()) << bin.status();
  auto model = ParseSentencePiece(*ReadFile(folder + "tok512.model"), Json());
  ASSERT_TRUE(model.ok()) << model.status();
  for (const char* text : {"Once upon a time, there was a little girl.", "Zoé says 你好", ""}) {
    EXPECT_EQ(*(*bin)->Encode(text, true, true), *(*model)->Encode(text, true, true));
    EXPECT_EQ(*(*bin)->Decode(*(*bin)->Encode(text, true, true), true), text);
  }
}

TEST(Speed, OneMegabyteWordIsNotQuadratic) {
  if (!IsDirectory(kTokenizers + "llama3_1")) GTEST_SKIP() << "no shared tokenizer data";
  auto files = LoadTokenizer(kTokenizers + "llama3_1");
  ASSERT_TRUE(files.ok());
  EXPECT_TRUE(files->tokenizer->Encode(std::string(1 << 20, 'a'), false).ok());
}

TEST(Hostile, StatusNotCrash) {
  for (const char* text : {"{}", "[]", R"({"model":{"type":"BPE","vocab":{"a":99999999999},"merges":[]}})",
                           R"({"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}})",
                           R"({"model":{"type":"BPE","vocab":{"a":0},"merges":[3]}})",
                           R"({"model":{"type":"Unigram","vocab":[["a",0]],"unk_id":7}})"}) {
    EXPECT_FALSE(ParseTokenizerJson(*ParseJson(text, "t")).ok()) << text;
  }
  auto regex = Regex::Compile("(a+)+[bd]");
  ASSERT_TRUE(regex.ok());
  std::vector<TextRange> matches;
  EXPECT_EQ((*regex)->FindAll(std::string(64, 'a') + "c", matches).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(ParseSentencePiece("\x0a\xff\xff", Json()).ok());
  EXPECT_FALSE(ParseLlama2c("abcdefgh1234").ok());
}

}  // namespace
}  // namespace sage
