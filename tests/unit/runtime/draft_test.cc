// Guessing by repetition.
#include "engine/runtime/draft.h"

#include "gtest/gtest.h"

namespace sage::draft_test {
namespace {

using Ids = std::vector<int32_t>;

TEST(Draft, FollowsTheLatestOccurrenceOfThreeIdsThenOfTwo) {
  EXPECT_EQ(DraftFromNgrams(Ids{1, 2, 3, 4, 5, 1, 2, 3}, 2), (Ids{4, 5}));
  EXPECT_EQ(DraftFromNgrams(Ids{1, 2, 3, 4, 1, 2, 3, 9, 8, 1, 2, 3}, 2), (Ids{9, 8}));
  EXPECT_EQ(DraftFromNgrams(Ids{7, 2, 3, 4, 5, 6, 2, 3}, 3), (Ids{4, 5, 6}));
  EXPECT_EQ(DraftFromNgrams(Ids{1, 2, 1, 2, 1}, 8), (Ids{2, 1}));  // no further than the end
}

TEST(Draft, NothingWithoutARepetition) {
  EXPECT_TRUE(DraftFromNgrams(Ids{}, 4).empty());
  EXPECT_TRUE(DraftFromNgrams(Ids{1, 2}, 4).empty());
  EXPECT_TRUE(DraftFromNgrams(Ids{1, 2, 3, 4, 5}, 4).empty());
  EXPECT_TRUE(DraftFromNgrams(Ids{1, 1, 1, 1}, 0).empty());
}

TEST(Draft, LengthFollowsWhatWasRight) {
  EXPECT_EQ(NextDraftLength(3, 3), 6);
  EXPECT_EQ(NextDraftLength(6, 6), kMaxDraftLength);
  EXPECT_EQ(NextDraftLength(8, 2), 3);
  EXPECT_EQ(NextDraftLength(3, 0), 1);
}

}  // namespace
}  // namespace sage::draft_test
