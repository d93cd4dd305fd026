// Operations: life cycle, pages, request ids, cancel, watch, and what a restart finds.
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>

#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"
#include "server/operations/runner.h"

namespace sage::server {
namespace {

std::string Database() {
  const std::string name = testing::UnitTest::GetInstance()->current_test_info()->name();
  const std::string path = testing::TempDir() + "/ops_" + name + ".db";
  for (const char* end : {"", "-wal", "-shm"}) std::filesystem::remove(path + end);
  return path;
}

OperationRecord WaitEnd(OperationRunner& runner, const std::string& id) {
  for (int i = 0; i < 1000; ++i) {
    auto record = runner.Get(id);
    if (record.ok() && IsEnded(record->state)) return *record;
    absl::SleepFor(absl::Milliseconds(5));
  }
  ADD_FAILURE() << id << " did not end";
  return {};
}

// Work that ends at once, fails, or runs until cancelled, by its spec.
absl::StatusOr<OperationOutcome> Work(const OperationRecord& record, const CancelToken& cancel,
                                      const ProgressFn& progress) {
  progress({"stage", 1, 2, "layers"});
  if (record.spec == "fail") return MakeError(absl::StatusCode::kInvalidArgument, "MY_REASON", "bad");
  while (record.spec == "hang") {
    if (cancel.cancelled()) return cancel.Check();
    absl::SleepFor(absl::Milliseconds(1));
  }
  return OperationOutcome{"any", "{\"a\":1}"};
}

std::map<std::string, OperationKind> Kinds() {
  return {{"calibrate", {Work, true}}, {"convert", {Work, false}}, {"start_engine", {nullptr, false}}};
}

TEST(Operations, SucceedsFailsAndLists) {
  auto store = *OperationStore::Open(Database());
  OperationRunner runner(*store, NullMetricSink(), Kinds(), 1);
  auto good = runner.Start("calibrate", "t", "x", "");
  auto bad = runner.Start("convert", "t", "fail", "");
  ASSERT_TRUE(good.ok() && bad.ok());
  const OperationRecord done = WaitEnd(runner, good->id);
  EXPECT_EQ(done.state, OperationState::kSucceeded);
  EXPECT_EQ(done.result_json, "{\"a\":1}");
  EXPECT_EQ(done.done, done.total);
  const OperationRecord failed = WaitEnd(runner, bad->id);
  EXPECT_EQ(failed.state, OperationState::kFailed);
  EXPECT_NE(failed.error.find("MY_REASON"), std::string::npos);
  auto page = store->List("", 0, 1, "");
  ASSERT_TRUE(page.ok());
  ASSERT_EQ(page->records.size(), 1u);
  EXPECT_EQ(page->records[0].id, bad->id);
  auto next = store->List("", 0, 1, page->next_page_token);
  ASSERT_TRUE(next.ok());
  EXPECT_EQ(next->records[0].id, good->id);
  EXPECT_TRUE(next->next_page_token.empty());
  EXPECT_EQ(store->List("convert", 0, 10, "")->records.size(), 1u);
  EXPECT_EQ(store->List("", 3, 10, "")->records.size(), 1u);
  EXPECT_FALSE(store->List("", 0, 10, "junk").ok());
  EXPECT_EQ(store->NewestSucceeded("calibrate", "t")->id, good->id);
  EXPECT_EQ(runner.Get("none").status().code(), absl::StatusCode::kNotFound);
}

TEST(Operations, RequestIdsAreAnsweredOnce) {
  auto store = *OperationStore::Open(Database());
  OperationRunner runner(*store, NullMetricSink(), Kinds(), 1);
  auto first = runner.Start("convert", "t", "x", "r1");
  auto again = runner.Start("convert", "t", "x", "r1");
  ASSERT_TRUE(first.ok() && again.ok());
  EXPECT_EQ(first->id, again->id);
  auto other = runner.Start("convert", "t", "y", "r1");
  EXPECT_EQ(other.status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(GetErrorReason(other.status()).reason, "REQUEST_ID_REUSED");
}

TEST(Operations, OldOnesAreForgottenButTheNewestSuccessOfATarget) {
  auto store = *OperationStore::Open(Database(), /*kept=*/3);
  int made = 0;
  const auto create = [&](const char* kind, const char* target, OperationState state) {
    OperationRecord record;
    record.id = absl::StrCat("o", ++made);
    record.kind = kind;
    record.target = target;
    record.state = state;
    EXPECT_TRUE(store->Create(record).ok());
    EXPECT_TRUE(store->RecordRequest(absl::StrCat("r", made), "m", "h", record.id).ok());
    return record.id;
  };
  const std::string running = create("calibrate", "a", OperationState::kRunning);
  const std::string older = create("calibrate", "b", OperationState::kSucceeded);
  const std::string newest = create("calibrate", "b", OperationState::kSucceeded);
  const std::string failed = create("calibrate", "c", OperationState::kFailed);
  const std::string start = create("start_engine", "e", OperationState::kSucceeded);
  for (int i = 0; i < 3; ++i) create("start_engine", "e", OperationState::kSucceeded);
  std::vector<std::string> left;
  const auto page = store->List("", 0, 100, "");
  ASSERT_TRUE(page.ok());
  for (const OperationRecord& record : page->records) left.push_back(record.id);
  EXPECT_EQ(left, (std::vector<std::string>{"o8", "o7", "o6", newest, running}));
  EXPECT_FALSE(store->Get(older).ok() || store->Get(failed).ok() || store->Get(start).ok());
  EXPECT_EQ(store->NewestSucceeded("calibrate", "b")->id, newest);
  EXPECT_EQ(*store->FindRequest("r5", "m", "h"), std::nullopt);
  EXPECT_EQ(*store->FindRequest("r6", "m", "h"), "o6");
}

TEST(Operations, CancelReachesRunningAndPending) {
  auto store = *OperationStore::Open(Database());
  OperationRunner runner(*store, NullMetricSink(), Kinds(), 1);
  const std::string running = runner.Start("calibrate", "a", "hang", "")->id;
  const std::string pending = runner.Start("calibrate", "b", "hang", "")->id;
  EXPECT_EQ(runner.Cancel(pending)->state, OperationState::kCancelled);
  ASSERT_TRUE(runner.Cancel(running).ok());
  EXPECT_EQ(WaitEnd(runner, running).state, OperationState::kCancelled);
  EXPECT_EQ(runner.Cancel(running)->state, OperationState::kCancelled);
}

TEST(Operations, WatchersSeeTheEndAndUnwatchStops) {
  auto store = *OperationStore::Open(Database());
  OperationRunner runner(*store, NullMetricSink(), Kinds(), 1);
  const std::string id = runner.Start("calibrate", "a", "hang", "")->id;
  std::mutex mutex;
  std::vector<OperationState> seen;
  auto key = runner.Watch(id, [&](const OperationRecord& record) {
    std::lock_guard lock(mutex);
    seen.push_back(record.state);
  });
  ASSERT_TRUE(key.ok());
  int calls = 0;
  auto other = runner.Watch(id, [&](const OperationRecord&) { ++calls; });
  runner.Unwatch(*other);
  const int before = calls;
  ASSERT_TRUE(runner.Cancel(id).ok());
  WaitEnd(runner, id);
  std::lock_guard lock(mutex);
  EXPECT_EQ(seen.back(), OperationState::kCancelled);
  EXPECT_EQ(calls, before);
  bool late = false;
  ASSERT_TRUE(runner.Watch(id, [&](const OperationRecord& record) { late = IsEnded(record.state); }).ok());
  EXPECT_TRUE(late);
}

// What a kill -9 leaves: records that say RUNNING. They are written here by hand.
TEST(Operations, RestartResumesCalibrationsAndFailsTheRest) {
  const std::string path = Database();
  {
    auto store = *OperationStore::Open(path);
    for (const char* kind : {"calibrate", "convert", "start_engine"}) {
      OperationRecord record;
      record.id = std::string("old-") + kind;
      record.kind = kind;
      record.spec = "x";
      record.state = OperationState::kRunning;
      record.attempts = 1;
      ASSERT_TRUE(store->Create(record).ok());
    }
  }
  auto store = *OperationStore::Open(path);
  OperationRunner runner(*store, NullMetricSink(), Kinds(), 1);
  runner.Recover();
  const OperationRecord resumed = WaitEnd(runner, "old-calibrate");
  EXPECT_EQ(resumed.state, OperationState::kSucceeded);
  EXPECT_EQ(resumed.attempts, 2);
  for (const char* id : {"old-convert", "old-start_engine"}) {
    EXPECT_EQ(runner.Get(id)->state, OperationState::kFailed);
    EXPECT_NE(runner.Get(id)->error.find("DAEMON_RESTARTED"), std::string::npos);
  }
}

// An orderly stop leaves a running calibration RUNNING in the store, so that the next start resumes it.
TEST(Operations, StopLeavesRunningWorkForTheNextStart) {
  const std::string path = Database();
  std::string id;
  {
    auto store = *OperationStore::Open(path);
    OperationRunner runner(*store, NullMetricSink(), Kinds(), 1);
    id = runner.Start("calibrate", "a", "hang", "")->id;
    while (runner.Get(id)->state != OperationState::kRunning) absl::SleepFor(absl::Milliseconds(1));
    runner.Stop();
    EXPECT_FALSE(runner.Start("calibrate", "a", "x", "").ok());
  }
  auto store = *OperationStore::Open(path);
  EXPECT_EQ(store->Get(id)->state, OperationState::kRunning);
  EXPECT_EQ(store->Unfinished().size(), 1u);
}

}  // namespace
}  // namespace sage::server
