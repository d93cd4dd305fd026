// Status reasons, bounded JSON, atomic files, path joins and the thread pool.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "engine/base/file.h"
#include "engine/base/json.h"
#include "engine/base/read_ahead.h"
#include "engine/base/status.h"
#include "engine/base/thread_pool.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sage {
namespace {

using ::testing::HasSubstr;

std::string TempFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "sage_base_XXXXXX").string();
  return mkdtemp(name.data());
}

TEST(StatusTest, ReasonAndMetadataSurviveAnnotation) {
  const absl::Status status = MakeError(absl::StatusCode::kInvalidArgument, "GROUP_SIZE_MUST_DIVIDE_K", "group_size",
                                        {{"K", "576"}, {"text", "a=b\nc"}});
  const absl::Status annotated = Annotate(status, "layer 3");
  EXPECT_EQ(annotated.message(), "layer 3: group_size");
  const ErrorReason reason = GetErrorReason(annotated);
  EXPECT_EQ(reason.reason, "GROUP_SIZE_MUST_DIVIDE_K");
  EXPECT_EQ(reason.metadata.at("K"), "576");
  EXPECT_EQ(reason.metadata.at("text"), "a=b c");
  EXPECT_TRUE(GetErrorReason(absl::InternalError("x")).reason.empty());
}

TEST(JsonTest, Limits) {
  EXPECT_TRUE(ParseJson("{\"a\": [1, 2]}", "t").ok());
  const std::string deep(100000, '[');
  const auto too_deep = ParseJson(deep, "t");
  EXPECT_THAT(std::string(too_deep.status().message()), HasSubstr("nesting must be at most 64"));
  EXPECT_FALSE(ParseJson("{\"a\":1,", "t").ok());
  EXPECT_FALSE(ParseJson("\"\xff\"", "t").ok());
  EXPECT_FALSE(ParseJson("[1]", "t", {.max_bytes = 2}).ok());
  EXPECT_TRUE(ParseJson("{\"a\":1,\"a\":2}", "t").ok());
  EXPECT_FALSE(ParseJson("{\"a\":1,\"a\":2}", "t", {.reject_duplicate_keys = true}).ok());
  EXPECT_TRUE(ParseJson("[{\"a\":1},{\"a\":2}]", "t", {.reject_duplicate_keys = true}).ok());
}

TEST(JsonTest, TypedMembers) {
  const Json object = {{"i", 7}, {"f", 2.0}, {"half", 0.5}, {"s", "x"}, {"n", nullptr}, {"big", 18446744073709551615u}};
  EXPECT_EQ(*JsonInt(object, "i", 0), 7);
  EXPECT_EQ(*JsonInt(object, "f", 0), 2);
  EXPECT_EQ(*JsonInt(object, "n", 5), 5);
  EXPECT_FALSE(JsonInt(object, "half", 0).ok());
  EXPECT_FALSE(JsonInt(object, "big", 0).ok());
  EXPECT_FALSE(JsonInt(object, "s", 0).ok());
  EXPECT_EQ(*JsonString(object, "s", ""), "x");
  EXPECT_FALSE(JsonBool(object, "i", false).ok());
}

TEST(FileTest, AtomicWriteAndMap) {
  const std::string path = TempFolder() + "/a.bin";
  ASSERT_TRUE(WriteFileAtomic(path, "first").ok());
  ASSERT_TRUE(WriteFileAtomic(path, "second").ok());
  EXPECT_EQ(*ReadFile(path), "second");
  EXPECT_FALSE(ReadFile(path, 3).ok());
  const auto map = MappedFile::Open(path);
  ASSERT_TRUE(map.ok());
  EXPECT_EQ((*map)->size(), 6u);
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(*Sha256File(path), Sha256Hex("second"));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(std::filesystem::path(path).parent_path()),
                          std::filesystem::directory_iterator()),
            1);
}

TEST(FileTest, OddFiles) {
  EXPECT_EQ(MappedFile::Open("/nonexistent/x").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(MappedFile::Open("/").ok());
  EXPECT_FALSE(ReadFile("/dev/zero").ok());
  const std::string empty = TempFolder() + "/empty";
  std::ofstream(empty).close();
  EXPECT_EQ((*MappedFile::Open(empty))->size(), 0u);
}

TEST(FileTest, JoinInsideRefusesWaysOut) {
  EXPECT_EQ(*JoinInside("/a", "b/c"), "/a/b/c");
  for (const char* bad : {"", "/etc/passwd", "../x", "b/../../x", "b\\c", ".."}) {
    EXPECT_FALSE(JoinInside("/a", bad).ok()) << bad;
  }
  EXPECT_FALSE(JoinInside("/a", std::string_view("a\0b", 3)).ok());
}

TEST(ThreadPoolTest, EveryTaskRunsOnce) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (const int64_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(tasks));
      pool.Run(tasks, [&](int64_t task, int worker) {
        ASSERT_LT(worker, threads);
        seen[static_cast<size_t>(task)].fetch_add(1);
      });
      for (const auto& count : seen) EXPECT_EQ(count.load(), 1);
    }
  }
}

// Each thread walks through its share of every matrix once, up to a limit, and begins anew when something is announced.
TEST(ReadAheadTest, SharesEndAndBeginAnew) {
  std::vector<uint8_t> codes(64 * 1024), scales(4 * 1024);
  ReadAhead ahead;
  ReadAhead::Cursor cursor;
  const auto steps = [&](int worker, int workers) {
    int count = 0;
    while (ahead.Step(worker, workers, &cursor)) ++count;
    return count;
  };
  const auto bytes = [&] { return cursor.bytes; };
  steps(0, 1);
  EXPECT_EQ(bytes(), 0u);
  const ReadAhead::Matrix matrix = {{{codes.data(), codes.size()}, {scales.data(), scales.size()}}};
  ahead.Set({matrix, matrix});
  EXPECT_GT(steps(1, 2), 0);
  EXPECT_EQ(bytes(), codes.size() + scales.size());  // half of each of two matrices
  EXPECT_EQ(steps(1, 2), 0);
  ahead.Set({matrix});
  EXPECT_GT(steps(0, 1), 0);
  EXPECT_EQ(bytes(), codes.size() + scales.size());
  // Far more than a cache holds: it stops early. Nothing is read, so the memory need not be there.
  ahead.Set({ReadAhead::Matrix{{{codes.data(), size_t{1} << 30}}}});
  EXPECT_GT(steps(0, 1), 0);
  EXPECT_LT(bytes(), size_t{1} << 20);
  ahead.Set({});
  steps(0, 1);
  EXPECT_EQ(bytes(), 0u);
}

TEST(ThreadPoolTest, SleepsAndWakesAndServesSeveralCallers) {
  ThreadPool pool(3);
  std::atomic<int64_t> sum{0};
  const auto caller = [&] {
    for (int i = 0; i < 200; ++i) {
      if (i % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(3));
      pool.ParallelFor(100, 1, [&](int64_t begin, int64_t end) { sum.fetch_add(end - begin); });
    }
  };
  std::thread other(caller);
  caller();
  other.join();
  EXPECT_EQ(sum.load(), 2 * 200 * 100);
}

// Far more workers than cores: jobs end without those that never get a turn, and no task runs twice or late.
TEST(ThreadPoolTest, JobsOfManySizesFromTwoCallers) {
  ThreadPool pool(16);
  const auto caller = [&](int64_t salt) {
    std::vector<int> seen(64);
    for (int64_t i = 0; i < 2000; ++i) {
      const int64_t tasks = 1 + (i * 7 + salt) % 64;
      std::fill(seen.begin(), seen.end(), 0);
      pool.Run(tasks, [&](int64_t task, int) { ++seen[static_cast<size_t>(task)]; });
      ASSERT_EQ(std::count(seen.begin(), seen.end(), 1), tasks);
      ASSERT_EQ(std::count(seen.begin(), seen.end(), 0), 64 - tasks);
    }
  };
  std::thread other([&] { caller(5); });
  caller(11);
  other.join();
}

}  // namespace
}  // namespace sage
