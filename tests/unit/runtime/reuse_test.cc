// What saves steps and changes no text: pages of earlier requests, and guessed ids.
#include "gtest/gtest.h"
#include "tests/unit/runtime/fake_decoder.h"

namespace sage::reuse_test {
namespace {

TEST(Engine, PrefixesOfEarlierRequestsAreNotComputedAgain) {
  for (const bool keeps : {true, false}) {
    FakeEngineSpec fake;
    fake.prefix_cache = keeps;
    FakeEngine e = StartFake(fake);
    std::vector<int32_t> ids = Prompt(21, 1);
    for (int turn = 0; turn < 3; ++turn) {  // a conversation: each turn begins with all that was said
      Collector c;
      ASSERT_TRUE(e.engine->Submit(Greedy(ids, 10), c.sink()).ok());
      const GenerationUsage usage = c.Wait().usage;
      EXPECT_EQ(c.choices[0].ids, GreedyReference(ids, 10, 64, false));
      // The last id of a turn was sampled, never computed.
      const int64_t known = turn == 0 || !keeps ? 0 : (static_cast<int64_t>(ids.size()) - 6) / 4 * 4;
      EXPECT_EQ(usage.cached_tokens, known) << turn;
      ids.insert(ids.end(), c.choices[0].ids.begin(), c.choices[0].ids.end());
      for (int i = 0; i < 5; ++i) ids.push_back(1 + (i + turn) % 60);
    }
    ExpectNoPages(*e.engine);
  }
}

TEST(Engine, RightDraftsSaveStepsAndWrongOnesCostNoText) {
  FakeEngineSpec fake;
  fake.drafts = true;
  fake.tokenizer = true;
  fake.V = 3;  // few ids: n-grams recur although what follows is a hash
  fake.max_model_len = 200;
  RecordingSink sink;
  fake.metrics = &sink;
  FakeEngine e = StartFake(fake);
  std::vector<int32_t> prompt;
  for (int i = 0; i < 24; ++i) prompt.push_back(1 + i % 2);
  for (int i = 0; i < 3; ++i) {
    Collector c;
    GenerateSpec spec = Greedy(prompt, 60 + i);
    if (i == 2) spec.stop = {"bab"};
    ASSERT_TRUE(e.engine->Submit(spec, c.sink()).ok());
    ASSERT_TRUE(c.Wait().status.ok());
    std::vector<int32_t> want = GreedyReference(prompt, 60 + i, 3, false);
    want.resize(std::min(want.size(), c.choices[0].ids.size()));
    EXPECT_EQ(c.choices[0].ids, want);
    if (i < 2) {
      EXPECT_EQ(c.choices[0].ids.size(), static_cast<size_t>(60 + i));
    }
  }
  ExpectNoPages(*e.engine);
  EXPECT_GT(sink.Get("sage_drafted_tokens_total"), 0);
  EXPECT_GT(sink.Get("sage_draft_accepted_tokens_total"), 0);
  EXPECT_LT(sink.Get("sage_draft_accepted_tokens_total"), sink.Get("sage_drafted_tokens_total"));
}

TEST(Engine, DynamicRopeSharesOnlyPromptsOfOneLength) {
  FakeEngineSpec fake;
  fake.prepare = [](FakeDecoder& decoder) { decoder.set_rope_kind("dynamic"); };
  FakeEngine e = StartFake(fake);
  const auto cached = [&](int length) {
    Collector c;
    EXPECT_TRUE(e.engine->Submit(Greedy(Prompt(length, 1), 6), c.sink()).ok());
    return c.Wait().usage.cached_tokens;
  };
  EXPECT_EQ(cached(21), 0);
  EXPECT_EQ(cached(22), 0);
  EXPECT_EQ(cached(21), 20);
}

}  // namespace
}  // namespace sage::reuse_test
