// The page pool and the scheduling rules: order, chunks, admission by pages, preemption of the youngest.
#include "engine/runtime/scheduler.h"

#include <set>

#include "gtest/gtest.h"

namespace sage::scheduler_test {
namespace {

std::shared_ptr<Sequence> MakeSequence(int choice, int64_t prompt) {
  auto out = std::make_shared<Sequence>();
  out->request = std::make_shared<GenerationRequest>();
  out->choice = choice;
  out->ids.assign(static_cast<size_t>(prompt), 1);
  out->prompt_length = prompt;
  return out;
}

// What the step loop does after a step.
void Finish(const StepPlan& plan) {
  for (const ScheduledRows& slice : plan.slices) {
    slice.sequence->computed += slice.rows;
    if (slice.samples) slice.sequence->ids.push_back(2);
  }
}

TEST(KvPool, GivesEachPageOnceAndTakesItBack) {
  KvPool pool(4, 16);
  std::vector<int32_t> a, b;
  EXPECT_TRUE(pool.Grow(a, 33));
  EXPECT_EQ(a.size(), 3u);
  EXPECT_FALSE(pool.Grow(b, 17));
  EXPECT_TRUE(b.empty());
  EXPECT_TRUE(pool.Grow(b, 16));
  EXPECT_EQ(pool.free(), 0);
  std::set<int32_t> all(a.begin(), a.end());
  all.insert(b.begin(), b.end());
  EXPECT_EQ(all.size(), 4u);
  EXPECT_TRUE(pool.Grow(a, 48));  // fits what it has
  EXPECT_FALSE(pool.Grow(a, 49));
  pool.Release(a);
  pool.Release(b);
  EXPECT_EQ(pool.used(), 0);
}

TEST(KvPool, ALaterSequenceTakesOverThePagesItBeginsWith) {
  KvPool pool(8, 4, 0, true);
  std::vector<int32_t> ids = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, a, b;
  PrefixChain chain_a{kAnyPrefix, 0}, chain_b{kAnyPrefix, 0};
  EXPECT_EQ(pool.Attach(ids, a, chain_a), 0);
  ASSERT_TRUE(pool.Grow(a, 10));
  pool.Register(ids, a, chain_a);
  EXPECT_EQ(chain_a.pages, 2);
  EXPECT_EQ(pool.Attach(ids, b, chain_b), 8);
  ASSERT_EQ(b.size(), 2u);
  EXPECT_EQ(b[0], a[0]);
  EXPECT_EQ(b[1], a[1]);
  EXPECT_EQ(pool.used(), 3);
  ASSERT_TRUE(pool.Grow(b, 10));
  EXPECT_NE(b[2], a[2]);
  pool.Release(a);
  EXPECT_EQ(pool.used(), 3);
  pool.Release(b);
  EXPECT_EQ(pool.used(), 0);
  EXPECT_EQ(pool.cached(), 2);
  EXPECT_EQ(pool.free(), 8);
}

TEST(KvPool, AtLeastOneIdIsComputedAndOtherBeginningsFindNothing) {
  KvPool pool(8, 4, 0, true);
  std::vector<int32_t> ids = {1, 2, 3, 4, 5, 6, 7, 8}, a, b;
  PrefixChain chain{kAnyPrefix, 0};
  ASSERT_TRUE(pool.Grow(a, 8));
  pool.Register(ids, a, chain);
  pool.Release(a);
  chain = {kAnyPrefix, 0};
  EXPECT_EQ(pool.Attach(ids, b, chain), 4);  // the second page holds the last id
  pool.Release(b);
  for (const std::vector<int32_t>& other : {std::vector<int32_t>{5, 6, 7, 8, 9}, {1, 2, 3, 5, 5, 6, 7, 8, 9}}) {
    chain = {kAnyPrefix, 0};
    EXPECT_EQ(pool.Attach(other, b, chain), 0);
  }
  chain = {kAnyPrefix - 9, 0};  // positions that mean something else
  EXPECT_EQ(pool.Attach(ids, b, chain), 0);
}

TEST(KvPool, PagesOfNobodyGoWhenMemoryIsNeededTheOldestEndFirst) {
  KvPool pool(4, 4, 0, true);
  std::vector<int32_t> ids = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}, a, b;
  PrefixChain chain{kAnyPrefix, 0};
  ASSERT_TRUE(pool.Grow(a, 13));
  pool.Register(ids, a, chain);
  pool.Release(a);
  EXPECT_EQ(pool.cached(), 3);
  ASSERT_TRUE(pool.Grow(b, 8));  // the free page and the end of the chain
  EXPECT_EQ(pool.cached(), 2);
  chain = {kAnyPrefix, 0};
  EXPECT_EQ(pool.Attach(ids, a, chain), 8);
  EXPECT_EQ(pool.free(), 0);
  std::vector<int32_t> c;
  EXPECT_FALSE(pool.Grow(c, 1));
  pool.Release(a);
  pool.Release(b);
  ASSERT_TRUE(pool.Grow(c, 16));
  EXPECT_EQ(pool.cached(), 0);
  EXPECT_EQ(std::set<int32_t>(c.begin(), c.end()).size(), 4u);
}

TEST(KvPool, SinkPagesAreSharedInPairs) {
  KvPool pool(6, 4, 1, true);
  std::vector<int32_t> ids = {1, 2, 3, 4, 5, 6, 7, 8, 9}, a, b;
  PrefixChain first{kAnyPrefix, 0}, second{kAnyPrefix, 0};
  ASSERT_TRUE(pool.Grow(a, 9));
  ASSERT_EQ(a.size(), 4u);  // the first page takes two
  pool.Register(ids, a, first);
  const std::vector<int32_t> kept = a;
  pool.Release(a);
  EXPECT_EQ(pool.used(), 0);
  EXPECT_EQ(pool.cached(), 3);
  EXPECT_EQ(pool.Attach(ids, b, second), 8);
  ASSERT_EQ(b.size(), 3u);
  EXPECT_TRUE(std::equal(b.begin(), b.end(), kept.begin()));
  EXPECT_EQ(pool.used(), 3);
  pool.Release(b);
  std::vector<int32_t> c;
  ASSERT_TRUE(pool.Grow(c, 20));  // six entries: everything that was kept goes
  EXPECT_EQ(std::set<int32_t>(c.begin(), c.end()).size(), 6u);
  EXPECT_EQ(pool.cached(), 0);
  pool.Release(c);
  EXPECT_EQ(pool.free(), 6);
}

TEST(KvPool, TwoThatComputedTheSameKeepOne) {
  KvPool pool(4, 4, 0, true);
  std::vector<int32_t> ids = {1, 2, 3, 4, 5}, a, b;
  PrefixChain first{kAnyPrefix, 0}, second{kAnyPrefix, 0};
  ASSERT_TRUE(pool.Grow(a, 5) && pool.Grow(b, 5));
  pool.Register(ids, a, first);
  pool.Register(ids, b, second);
  EXPECT_EQ(first.node, second.node);
  pool.Release(a);
  pool.Release(b);
  EXPECT_EQ(pool.cached(), 1);
  EXPECT_EQ(pool.free(), 4);
}

TEST(Scheduler, ChoicesOfARequestShareThePromptTheFirstComputed) {
  KvPool pool(100, 4, 0, true);
  Scheduler scheduler(pool, {8, 6, 0});
  std::vector<std::shared_ptr<Sequence>> all;
  for (int i = 0; i < 3; ++i) {
    all.push_back(MakeSequence(i, 10));
    all.back()->request = all[0]->request;
    scheduler.Add(all.back());
  }
  const auto step = [&] {
    const StepPlan plan = scheduler.Schedule();
    Finish(plan);
    for (const auto& s : all) {
      pool.Register(absl::MakeConstSpan(s->ids).first(static_cast<size_t>(s->computed)), s->pages, s->prefix);
    }
    return plan.slices.size();
  };
  EXPECT_EQ(step(), 1u);
  EXPECT_EQ(step(), 1u);  // the prompt is computed
  EXPECT_EQ(step(), 3u);
  for (const auto& s : all) {
    EXPECT_EQ(s->pages[0], all[0]->pages[0]);
    EXPECT_EQ(s->pages[1], all[0]->pages[1]);
  }
  EXPECT_NE(all[1]->pages[2], all[2]->pages[2]);
}

TEST(Scheduler, ChunksPromptsAndMixesDecodeRows) {
  KvPool pool(100, 4);
  Scheduler scheduler(pool, {4, 8, 0});
  scheduler.Add(MakeSequence(0, 3));
  scheduler.Add(MakeSequence(1, 20));
  StepPlan plan = scheduler.Schedule();
  ASSERT_EQ(plan.slices.size(), 2u);
  EXPECT_EQ(plan.slices[0].rows, 3);
  EXPECT_TRUE(plan.slices[0].samples);
  EXPECT_EQ(plan.slices[1].rows, 5);
  EXPECT_FALSE(plan.slices[1].samples);
  EXPECT_EQ(plan.rows, 8);
  EXPECT_EQ(plan.admitted.size(), 2u);
  Finish(plan);
  plan = scheduler.Schedule();
  ASSERT_EQ(plan.slices.size(), 2u);
  EXPECT_EQ(plan.slices[0].sequence->choice, 0);  // decode first
  EXPECT_EQ(plan.slices[0].rows, 1);
  EXPECT_EQ(plan.slices[1].rows, 7);
  EXPECT_TRUE(plan.admitted.empty());
}

TEST(Scheduler, PromptChunksAreSmallBesideDecodeRows) {
  KvPool pool(100, 4);
  Scheduler scheduler(pool, {4, 32, 5});
  scheduler.Add(MakeSequence(0, 40));
  StepPlan plan = scheduler.Schedule();
  EXPECT_EQ(plan.rows, 32);  // alone: the whole budget
  Finish(plan);
  Finish(scheduler.Schedule());
  scheduler.Add(MakeSequence(1, 40));
  plan = scheduler.Schedule();
  ASSERT_EQ(plan.slices.size(), 2u);
  EXPECT_EQ(plan.slices[0].rows, 1);
  EXPECT_EQ(plan.slices[1].rows, 5);
}

TEST(Scheduler, AdmitsInOrderAndNeverPassesTheHead) {
  KvPool pool(4, 4);
  Scheduler scheduler(pool, {8, 64, 0});
  scheduler.Add(MakeSequence(0, 8));
  scheduler.Add(MakeSequence(1, 16));  // does not fit beside the first
  scheduler.Add(MakeSequence(2, 1));   // would fit, but came later
  const StepPlan plan = scheduler.Schedule();
  ASSERT_EQ(plan.slices.size(), 1u);
  EXPECT_EQ(scheduler.waiting(), 2);
}

TEST(Scheduler, HonoursMaxSeqs) {
  KvPool pool(100, 4);
  Scheduler scheduler(pool, {2, 64, 0});
  for (int i = 0; i < 5; ++i) scheduler.Add(MakeSequence(i, 2));
  EXPECT_EQ(scheduler.Schedule().slices.size(), 2u);
}

TEST(Scheduler, PreemptsTheYoungestAndKeepsTheOrder) {
  KvPool pool(6, 4);
  Scheduler scheduler(pool, {8, 64, 0});
  std::vector<std::shared_ptr<Sequence>> all;
  for (int i = 0; i < 2; ++i) all.push_back(MakeSequence(i, 4));
  for (const auto& s : all) scheduler.Add(s);
  int64_t preempted = 0;
  for (int step = 0; step < 40 && all[0]->length() < 22; ++step) {
    const StepPlan plan = scheduler.Schedule();
    preempted += plan.preempted;
    ASSERT_FALSE(plan.slices.empty());
    EXPECT_EQ(plan.slices[0].sequence, all[0]);  // the oldest always runs
    int64_t rows = 0;
    for (const ScheduledRows& slice : plan.slices) {
      rows += slice.rows;
      EXPECT_GE(static_cast<int64_t>(slice.sequence->pages.size()) * 4, slice.sequence->computed + slice.rows);
    }
    EXPECT_EQ(rows, plan.rows);
    Finish(plan);
  }
  EXPECT_GE(preempted, 1);
  EXPECT_EQ(all[1]->computed, 0);
  EXPECT_TRUE(all[1]->pages.empty());
  scheduler.Remove(*all[0]);
  const StepPlan plan = scheduler.Schedule();
  ASSERT_EQ(plan.slices.size(), 1u);
  EXPECT_EQ(plan.slices[0].sequence, all[1]);
  EXPECT_EQ(plan.slices[0].rows, all[1]->length());  // all of it again
  EXPECT_TRUE(plan.admitted.empty());                // it ran before
  scheduler.Remove(*all[1]);
  EXPECT_TRUE(scheduler.idle());
  EXPECT_EQ(pool.used(), 0);
}

TEST(Scheduler, ReapTakesRunningAndWaiting) {
  KvPool pool(100, 4);
  Scheduler scheduler(pool, {2, 64, 0});
  for (int i = 0; i < 4; ++i) scheduler.Add(MakeSequence(i, 5));
  scheduler.Schedule();
  const auto ended = scheduler.Reap([](const Sequence& s) { return s.choice == 1 || s.choice == 3; });
  ASSERT_EQ(ended.size(), 2u);
  EXPECT_EQ(pool.used(), 2);
  EXPECT_EQ(scheduler.running(), 1);
  EXPECT_EQ(scheduler.waiting(), 1);
}

}  // namespace
}  // namespace sage::scheduler_test
