// What the daemon keeps of folders: one daemon to a data folder, tokenizers as long as their files stay and somebody
// asks, and memory only while it is used.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/data_dir_lock.h"
#include "server/engine_table.h"
#include "server/heap_upkeep.h"
#include "server/operations/calibration_work.h"
#include "tests/unit/server/fake_runtime.h"

namespace sage::server {
namespace {

namespace fs = std::filesystem;

class DataFolderTest : public ::testing::Test {
 protected:
  DataFolderTest() {
    std::string name = (fs::temp_directory_path() / "sage_data_XXXXXX").string();
    folder_ = mkdtemp(name.data());
  }
  ~DataFolderTest() override { fs::remove_all(folder_); }
  void WriteVocabulary(const std::string& tokens) const {
    std::ofstream(folder_ + "/tokenizer.json")
        << R"({"model": {"type": "BPE", "vocab": {)" << tokens << R"(}, "merges": []}, "added_tokens": []})";
  }
  std::string folder_;
};

TEST_F(DataFolderTest, BelongsToOneDaemon) {
  auto first = DataDirLock::Take(folder_);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = DataDirLock::Take(folder_);
  EXPECT_EQ(GetErrorReason(second.status()).reason, "DATA_DIR_IN_USE");
  EXPECT_EQ(GetErrorReason(second.status()).metadata.at("pid"), std::to_string(getpid()));
  *first = nullptr;
  EXPECT_TRUE(DataDirLock::Take(folder_).ok());
}

TEST_F(DataFolderTest, AKilledDaemonLeavesNoLock) {
  const pid_t child = fork();
  if (child == 0) {
    const auto held = DataDirLock::Take(folder_);
    _exit(held.ok() ? 7 : 1);  // without any destructor
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(WEXITSTATUS(status), 7);
  EXPECT_TRUE(DataDirLock::Take(folder_).ok());
}

TEST_F(DataFolderTest, TokenizersFollowTheirFiles) {
  TokenizerCache cache;
  WriteVocabulary(R"("a": 0)");
  const auto one = cache.Load(folder_);
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(cache.Load(folder_)->get(), one->get());  // kept
  WriteVocabulary(R"("a": 0, "b": 1)");
  const auto two = cache.Load(folder_);
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_EQ((*two)->tokenizer->vocab_size(), 2);
  EXPECT_EQ(cache.size(), 1u);  // what was read from other files is of no use
  // The same size and time: another file all the same, as an editor or `cp` leaves it.
  const auto time = fs::last_write_time(folder_ + "/tokenizer.json");
  fs::rename(folder_ + "/tokenizer.json", folder_ + "/old");
  WriteVocabulary(R"("a": 0, "c": 1)");
  fs::last_write_time(folder_ + "/tokenizer.json", time);
  EXPECT_TRUE((*cache.Load(folder_))->tokenizer->TokenToId("c").has_value());
  // A template that is added beside it.
  EXPECT_EQ((*cache.Load(folder_))->chat_template, "");
  std::ofstream(folder_ + "/chat_template.jinja") << "T";
  EXPECT_EQ((*cache.Load(folder_))->chat_template, "T");
}

TEST_F(DataFolderTest, TokenizersGoWhenNobodyAsks) {
  TokenizerCache cache;
  WriteVocabulary(R"("a": 0)");
  ASSERT_TRUE(cache.Load(folder_).ok());
  cache.DropUnused(absl::Now() + absl::Seconds(30));
  EXPECT_EQ(cache.size(), 1u);
  cache.DropUnused(absl::Now() + absl::Seconds(90));
  EXPECT_EQ(cache.size(), 0u);
}

// The folders of the engine's making: named by a hash, told apart by the output in their progress.
TEST_F(DataFolderTest, ACancelledCalibrationLeavesNothing) {
  const auto write = [&](const std::string& name, const std::string& output) {
    fs::create_directories(folder_ + "/work/" + name);
    std::ofstream(folder_ + "/work/" + name + "/model-1.safetensors") << "x";
    std::ofstream(folder_ + "/work/" + name + ".lock");
    std::ofstream(folder_ + "/work/" + name + ".progress.json")
        << R"({"spec_hash": "h", "output": ")" << output << R"("})";
  };
  write("calibrate-1", folder_ + "/artifacts/mine");
  write("calibrate-2", folder_ + "/artifacts/other");
  write("calibrate-3", folder_ + "/artifacts/mine.staged");
  fs::create_directories(folder_ + "/artifacts/mine.staged");
  DiscardCalibration(folder_ + "/work", folder_ + "/artifacts/mine");
  std::vector<std::string> left;
  for (const auto& entry : fs::directory_iterator(folder_ + "/work")) left.push_back(entry.path().filename());
  EXPECT_THAT(left, testing::UnorderedElementsAre("calibrate-2", "calibrate-2.lock", "calibrate-2.progress.json"));
  EXPECT_FALSE(fs::exists(folder_ + "/artifacts/mine.staged"));
}

TEST(HeapUpkeep, TrimsWhatWasFreedAndThenRests) {
  HeapUpkeep heap;
  absl::Time now = absl::Now();
  heap.Step(now);
  std::vector<std::string> blocks;  // below the size that malloc maps on its own
  for (int i = 0; i < 1000; ++i) blocks.emplace_back(64 << 10, 'x');
  const std::string last(64 << 10, 'x');  // above them: without it the heap would shrink by itself
  EXPECT_FALSE(heap.Step(now += absl::Seconds(10)));
  blocks.clear();
  EXPECT_FALSE(heap.Step(now + absl::Seconds(1)));  // not every second
  EXPECT_TRUE(heap.Step(now += absl::Seconds(10)));
  EXPECT_FALSE(heap.Step(now += absl::Seconds(10)));
}

// The reason of a failed start is read after it: the latest failures must be there, whatever their names.
TEST(EngineTable, TheLatestFailuresStay) {
  FakeRuntime runtime;
  EngineTable table(runtime);
  const auto fail = [&](const std::string& id) {
    EngineSpec spec;
    spec.engine_id = id;
    spec.quantization = "bad";
    const auto begun = [](const std::string&) { return std::string("operation"); };
    EXPECT_FALSE(table.Start(spec, begun, CancelToken(), [](const Progress&) {}).ok());
  };
  for (int i = 0; i < 60; ++i) {
    const std::string id = "z" + std::to_string(i);
    fail(id);
    const auto record = table.Get(id);
    ASSERT_TRUE(record.ok()) << id << " " << record.status();
    EXPECT_EQ(GetErrorReason(record->info.error).reason, "UNKNOWN_LINEAR_STRATEGY");
  }
  fail("a");
  EXPECT_TRUE(table.Get("a").ok());
  EXPECT_TRUE(table.Get("z59").ok());
  EXPECT_FALSE(table.Get("z0").ok());
  EXPECT_EQ(table.List().size(), 50u);
}

}  // namespace
}  // namespace sage::server
