// Benchmark folders: what rows mean, which files count, and what bad lines say; scores of a real small model.
#include <gtest/gtest.h>

#include <filesystem>

#include "engine/base/file.h"
#include "engine/report/task_items.h"
#include "engine/report/task_score.h"

namespace sage {
namespace {

std::string Folder(const std::string& name) {
  const std::string folder = testing::TempDir() + "/tasks-" + name;
  std::filesystem::remove_all(folder);
  EXPECT_TRUE(MakeDirectories(folder).ok());
  return folder;
}

TEST(TaskItems, ReadsEveryShape) {
  const std::string folder = Folder("shapes");
  ASSERT_TRUE(
      WriteFileAtomic(
          folder + "/a_test.jsonl",
          R"({"question":{"stem":"Why?","choices":[{"text":"x","label":"A"},{"text":"y","label":"B"}]},"answerKey":"B"})"
          "\n"
          R"({"query":"Question: Q","choices":["m","n","o"],"gold":2})"
          "\n"
          R"({"activity_label":"Run","ctx_a":"He [step] runs.","ctx_b":"THE man","endings":["goes [title] on.","stops"],"label":1})"
          "\n"
          R"({"text":"the last word"})"
          "\n")
          .ok());
  ASSERT_TRUE(WriteFileAtomic(folder + "/ignored_dev.jsonl", "not read\n").ok());
  const auto items = ReadTask("any", folder, 0);
  ASSERT_TRUE(items.ok()) << items.status();
  ASSERT_EQ(items->size(), 4u);
  EXPECT_EQ((*items)[0].context, "Question: Why?\nAnswer:");
  EXPECT_EQ((*items)[0].choices, (std::vector<std::string>{" x", " y"}));
  EXPECT_EQ((*items)[0].gold, 1);
  EXPECT_EQ((*items)[1].context, "Question: Q\nAnswer:");
  EXPECT_EQ((*items)[1].gold, 2);
  EXPECT_EQ((*items)[2].context, "Run: He runs. The man");
  EXPECT_EQ((*items)[2].choices[0], " goes. on.");
  EXPECT_EQ((*items)[3].context, "the last");
  EXPECT_EQ((*items)[3].choices, (std::vector<std::string>{" word"}));
}

TEST(TaskItems, MmluShowsExamples) {
  const std::string folder = Folder("mmlu");
  ASSERT_TRUE(MakeDirectories(folder + "/test").ok() && MakeDirectories(folder + "/dev").ok());
  ASSERT_TRUE(WriteFileAtomic(folder + "/dev/big_rocks_dev.csv", "One?,1,2,3,4,A\n").ok());
  ASSERT_TRUE(WriteFileAtomic(folder + "/test/big_rocks_test.csv", "\"Two, \"\"or\"\" more?\",5,6,7,8,D\n").ok());
  const auto items = ReadTask("mmlu", folder, 0);
  ASSERT_TRUE(items.ok()) << items.status();
  ASSERT_EQ(items->size(), 1u);
  EXPECT_EQ((*items)[0].context,
            "The following are multiple choice questions (with answers) about big rocks.\n\n"
            "One?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: A\n\nTwo, \"or\" more?\nA. 5\nB. 6\nC. 7\nD. 8\nAnswer:");
  EXPECT_EQ((*items)[0].choices[3], " D");
  EXPECT_EQ((*items)[0].gold, 3);
}

TEST(TaskItems, NamesTheBadLine) {
  const std::string folder = Folder("bad");
  EXPECT_EQ(ReadTask("t", folder, 0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadTask("t", folder + "/absent", 0).status().code(), absl::StatusCode::kInvalidArgument);
  for (const char* row : {"{", "[]", "{}", R"({"query":"q","choices":["a"],"gold":1})", R"({"query":"q","choices":3})",
                          R"({"question":{"stem":"s"},"answerKey":"A"})", R"({"endings":7})", R"({"text":"word"})"}) {
    ASSERT_TRUE(WriteFileAtomic(folder + "/t.jsonl", "{\"text\":\"two words\"}\n" + std::string(row) + "\n").ok());
    const auto items = ReadTask("t", folder, 0);
    EXPECT_FALSE(items.ok()) << row;
    EXPECT_NE(std::string(items.status().message()).find("t.jsonl:2:"), std::string::npos) << items.status();
  }
}

TEST(TaskItems, LimitSpreadsEvenly) {
  const std::string folder = Folder("limit");
  std::string rows;
  for (int i = 0; i < 10; ++i) rows += "{\"text\":\"row " + std::to_string(i) + "\"}\n";
  ASSERT_TRUE(WriteFileAtomic(folder + "/t.jsonl", rows).ok());
  const auto items = ReadTask("t", folder, 5);
  ASSERT_TRUE(items.ok());
  ASSERT_EQ(items->size(), 5u);
  EXPECT_EQ((*items)[1].choices[0], " 2");
  EXPECT_EQ((*items)[4].choices[0], " 8");
}

// The sum over a choice's ids equals the difference of two runs over whole texts, and a long context is cut.
TEST(TaskScore, ARealModelPrefersEnglish) {
  const std::string path = std::string(SAGE_SOURCE_DIR) + "/tests/data/stories260K";
  ThreadPool threads(2);
  const auto files = LoadTokenizer(path);
  ASSERT_TRUE(files.ok()) << files.status();
  auto model = ReportModel::Load(path, KvAsked{"f32", {}, {}, {}, 0}, 256, threads, CancelToken());
  ASSERT_TRUE(model.ok()) << model.status();
  const TaskItem item{
      "Once upon a time, there was a little girl named Lily. She liked to", {" zxq qq", " play", " %%"}, 1};
  const auto ids = EncodeItem(item, *files->tokenizer, 256);
  ASSERT_TRUE(ids.ok()) << ids.status();
  const auto score = ScoreItem(*ids, **model);
  ASSERT_TRUE(score.ok()) << score.status();
  EXPECT_TRUE(score->right);
  EXPECT_TRUE(score->right_normalized);
  EXPECT_EQ(score->picked, 1);
  EXPECT_GT(score->gold_nll, 0);
  TaskItem lengthy = item;
  for (int i = 0; i < 6; ++i) lengthy.context = lengthy.context + " " + lengthy.context;
  const auto cut = EncodeItem(lengthy, *files->tokenizer, 64);
  ASSERT_TRUE(cut.ok());
  size_t longest = 0;
  for (const auto& choice : cut->choices) longest = std::max(longest, choice.size());
  EXPECT_EQ(cut->context.size() + longest, 64u);
  EXPECT_TRUE(ScoreItem(*cut, **model).ok());
  const Json same = CompareTask({*score, *score}, {*score, *score}, false);
  EXPECT_EQ(same["accuracy"]["delta"], 0.0);
  EXPECT_EQ(same["agreement"], 1.0);
}

}  // namespace
}  // namespace sage
