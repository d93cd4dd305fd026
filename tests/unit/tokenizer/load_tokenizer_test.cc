// What a folder of tokenizer files gives: named chat templates, and files that have no usual name.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_format.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/tokenizer/tokenizer.h"

namespace sage {
namespace {

class LoadTokenizerTest : public ::testing::Test {
 protected:
  LoadTokenizerTest() {
    std::string name = (std::filesystem::temp_directory_path() / "sage_tokenizer_XXXXXX").string();
    folder_ = mkdtemp(name.data());
  }
  ~LoadTokenizerTest() override { std::filesystem::remove_all(folder_); }
  void Write(const std::string& name, const std::string& content) const {
    std::ofstream(folder_ + "/" + name, std::ios::binary) << content;
  }
  std::string folder_;
};

constexpr char kByteTokenizer[] =
    R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}, "added_tokens": []})";

TEST_F(LoadTokenizerTest, NamedTemplates) {
  Write("tokenizer.json", kByteTokenizer);
  Write("tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "rag",
      "template": "R"}, {"name": "default", "template": "D"}]})");
  auto files = LoadTokenizer(folder_);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(files->chat_template, "D");
  EXPECT_EQ(files->tool_template, "T");
  Write("tokenizer_config.json", R"({"chat_template": "alone"})");
  files = LoadTokenizer(folder_);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(files->chat_template, "alone");
  EXPECT_EQ(files->tool_template, "");
}

// llama2.c's layout: the longest token's length, then score, length and bytes of each token.
std::string Llama2c() {
  std::string out("\x06\0\0\0", 4);
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(absl::StrFormat("<0x%02X>", byte));
  for (const char* token : {"a", "b"}) tokens.emplace_back(token);
  for (const std::string& token : tokens) {
    out.append(4, '\0');
    out.push_back(static_cast<char>(token.size()));
    out.append(3, '\0');
    out += token;
  }
  return out;
}

TEST_F(LoadTokenizerTest, TheOnlyFileOfItsKindNeedsNoUsualName) {
  Write("tok512.bin", Llama2c());
  auto files = LoadTokenizer(folder_);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(files->tokenizer->vocab_size(), 261);
  Write("tok4096.bin", Llama2c());  // which one is meant?
  EXPECT_EQ(GetErrorReason(LoadTokenizer(folder_).status()).reason, "TOKENIZER_NOT_FOUND");
  std::filesystem::remove(folder_ + "/tok4096.bin");
  Write("config.json", "{}");  // a model without tokenizer files
  EXPECT_EQ(GetErrorReason(LoadTokenizer(folder_).status()).reason, "TOKENIZER_NOT_FOUND");
}

TEST_F(LoadTokenizerTest, SentencePieceByAnotherName) {
  const std::string source = std::string(SAGE_SOURCE_DIR) + "/../shared/data/tokenizers";
  std::string model;
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator it(source, error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename() == "tokenizer.model") model = it->path().string();
  }
  if (model.empty()) GTEST_SKIP() << "shared tokenizers are absent";
  std::filesystem::copy_file(model, folder_ + "/spiece.model");
  EXPECT_TRUE(LoadTokenizer(folder_).ok()) << LoadTokenizer(folder_).status();
}

}  // namespace
}  // namespace sage
