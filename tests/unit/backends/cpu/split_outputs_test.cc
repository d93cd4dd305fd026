// Products cut over threads: every output once, alone and in a group, and each thread begins with its own run.
#include "engine/backends/cpu/split_outputs.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

namespace sage::cpu {
namespace {

class SplitOutputsOf : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Threads, SplitOutputsOf, ::testing::Values(1, 2, 3, 8));

TEST_P(SplitOutputsOf, EveryUnitOnce) {
  ThreadPool pool(GetParam());
  StepContext ctx;
  ctx.threads = &pool;
  for (const int64_t units : {1, 2, 7, 18, 96, 1536}) {
    for (const int64_t work : {int64_t{1}, kInlineWork, int64_t{1000} * kInlineWork}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(units));
      std::atomic<int>* const counts = seen.data();
      const auto body = [counts](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ++counts[i];
      };
      SplitOutputs(ctx, units, work, body);
      ProductGroup group;
      ctx.group = &group;
      SplitOutputs(ctx, units, work, body);
      SplitOutputs(ctx, units, work, body);
      ctx.group = nullptr;
      group.Run(pool);
      for (const std::atomic<int>& count : seen) EXPECT_EQ(count, 3) << units << " units, work " << work;
    }
  }
}

TEST(PieceRuns, OwnRunFirstThenTheOthers) {
  PieceRuns runs(7, 3);  // 0 and 1, 2 and 3, 4 to 6; this thread's is the first
  for (int64_t piece = 0; piece < 7; ++piece) EXPECT_EQ(runs.Take(), piece);
  PieceRuns fewer(2, 5);
  EXPECT_EQ(fewer.Take() + fewer.Take(), 1);
}

TEST(WorkerIndex, IsThatOfTheJob) {
  ThreadPool pool(4);
  std::atomic<int> wrong{0};
  for (int round = 0; round < 50; ++round) {
    pool.Run(16, [&](int64_t, int worker) { wrong += worker != WorkerIndex(); });
  }
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace sage::cpu
