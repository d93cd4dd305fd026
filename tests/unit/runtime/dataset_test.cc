// Datasets: every accepted kind, and bad lines reported by number.
#include "engine/runtime/dataset.h"

#include "absl/strings/match.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/artifact_folder.h"

namespace sage::dataset_test {
namespace {

TEST(Dataset, PlainTextIsOneEntry) {
  const auto dataset = ParseDataset("One.\n\nTwo.\n", "a.txt", "");
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(dataset->kind, "text");
  ASSERT_EQ(dataset->entries.size(), 1u);
  EXPECT_EQ(dataset->entries[0].text, "One.\n\nTwo.\n");
  EXPECT_EQ(dataset->sha256, Sha256Hex("One.\n\nTwo.\n"));
  EXPECT_EQ(ParseDataset("[1] a footnote\n", "a.txt", "")->kind, "text");
}

TEST(Dataset, LinesOfEveryKind) {
  const auto dataset = ParseDataset(
      "{\"text\": \"a\"}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"b\"}]}\r\n"
      "{\"inputs_pretokenized\": \"c\"}\n{\"input_ids\": [1, 2]}\n[3, 4, 5]",
      "a.jsonl", "");
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(dataset->kind, "jsonl");
  ASSERT_EQ(dataset->entries.size(), 5u);
  EXPECT_EQ(dataset->entries[0].text, "a");
  EXPECT_EQ(dataset->entries[1].messages.size(), 1u);
  EXPECT_EQ(dataset->entries[1].line, 3);
  EXPECT_EQ(dataset->entries[2].text, "c");
  EXPECT_EQ(dataset->entries[3].ids, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(dataset->entries[4].ids, (std::vector<int32_t>{3, 4, 5}));
}

TEST(Dataset, AFieldIsTakenByName) {
  const auto dataset = ParseDataset("{\"body\": \"a\", \"text\": \"b\"}\n", "a.jsonl", "body");
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(dataset->entries[0].text, "a");
  EXPECT_FALSE(ParseDataset("{\"text\": \"b\"}\n", "a.jsonl", "body").ok());
}

TEST(Dataset, AnArrayOfIds) {
  const auto dataset = ParseDataset("[5, 6, 7]", "ids.json", "");
  ASSERT_TRUE(dataset.ok());
  EXPECT_EQ(dataset->kind, "ids");
  const auto stream = TokenizeStream(*dataset, nullptr);
  ASSERT_TRUE(stream.ok());
  EXPECT_EQ(*stream, (std::vector<int32_t>{5, 6, 7}));
}

TEST(Dataset, BadLinesAreNamed) {
  const std::pair<const char*, const char*> cases[] = {{"{\"text\": \"a\"}\n{\"text\": }\n", "line 2"},
                                                       {"{\"text\": \"a\"}\n\n{\"text\": 5}\n", "line 3"},
                                                       {"{\"other\": \"a\"}\n", "line 1"},
                                                       {"{\"text\": \"\"}\n", "line 1"},
                                                       {"[1, -2]\n", "line 1"},
                                                       {"[1, 4294967296]\n", "line 1"},
                                                       {"[1, \"x\"]\n", "line 1"},
                                                       {"{\"messages\": []}\n", "line 1"},
                                                       {"{\"messages\": [{\"content\": \"b\"}]}\n", "line 1"},
                                                       {"5\n", "line 1"},
                                                       {"\n \n", "line 1"}};
  for (const auto& [content, where] : cases) {
    const auto dataset = ParseDataset(content, "a.jsonl", "");
    ASSERT_FALSE(dataset.ok()) << content;
    EXPECT_EQ(GetErrorReason(dataset.status()).reason, "DATASET_INVALID") << content;
    EXPECT_TRUE(absl::StrContains(dataset.status().message(), where)) << dataset.status();
  }
}

TEST(Dataset, TextNeedsATokenizerAndIdsAVocabulary) {
  const auto text = ParseDataset("hello", "a.txt", "");
  EXPECT_EQ(GetErrorReason(TokenizeStream(*text, nullptr).status()).reason, "TOKENIZER_NOT_FOUND");
  const auto files = LoadTokenizer(StoriesGguf());
  ASSERT_TRUE(files.ok()) << files.status();
  const auto ids = ParseDataset("[1, 2, 512]\n", "a.jsonl", "");
  EXPECT_FALSE(TokenizeStream(*ids, &*files).ok());
  const auto lines = ParseDataset("{\"text\": \"Once\"}\n{\"text\": \"upon\"}\n", "a.jsonl", "");
  const auto stream = TokenizeStream(*lines, &*files);
  ASSERT_TRUE(stream.ok());
  EXPECT_EQ(*stream, *files->tokenizer->Encode("Once\n\nupon", true));
}

// Whatever the file on disk is called, messages name the user's; every wrong value has a line.
TEST(Dataset, ValuesAreRefusedByLine) {
  const auto text = ParseDataset("fine\nalso fine\nbad \xff here\n", "mine.txt", "");
  EXPECT_EQ(GetErrorReason(text.status()).reason, "DATASET_INVALID");
  EXPECT_TRUE(absl::StrContains(text.status().message(), "dataset mine.txt line 3: text must be valid UTF-8"))
      << text.status();
  const auto ids = ParseDataset("[1, 2]\n\n[3, 511, 512]\n", "mine.jsonl", "");
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_TRUE(CheckDatasetIds(*ids, 513).ok());
  const absl::Status status = CheckDatasetIds(*ids, 512);
  EXPECT_TRUE(absl::StrContains(status.message(), "line 3: token ids must be below the vocabulary size 512, got 512"))
      << status;
}

}  // namespace
}  // namespace sage::dataset_test
