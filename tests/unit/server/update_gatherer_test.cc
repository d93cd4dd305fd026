// Joining updates: choices apart, ends at once, large ones early.
#include "server/services/update_gatherer.h"

#include "gtest/gtest.h"

namespace sage::server {
namespace {

using quant::v1::GenerationUpdate;

GenerationUpdate Token(int choice, int id, const std::string& text) {
  GenerationUpdate update;
  update.set_index(choice);
  update.set_text(text);
  update.add_tokens()->set_id(id);
  update.set_seed(7);
  return update;
}

TEST(UpdateGatherer, KeepsChoicesApart) {
  UpdateGatherer gatherer(2);
  GenerationUpdate a = Token(0, 1, "a"), b = Token(1, 2, "b"), c = Token(0, 3, "c");
  EXPECT_FALSE(gatherer.Add(&a));
  EXPECT_FALSE(gatherer.Add(&b));
  EXPECT_TRUE(gatherer.Add(&c));
  EXPECT_EQ(c.text(), "ac");
  ASSERT_EQ(c.tokens_size(), 2);
  EXPECT_EQ(c.tokens(0).id(), 1);
  EXPECT_EQ(c.tokens(1).id(), 3);
  EXPECT_EQ(c.seed(), 7u);
  EXPECT_FALSE(gatherer.Holds(0));
  EXPECT_TRUE(gatherer.Holds(1));
  GenerationUpdate end;  // an end that brings nothing itself
  end.set_index(1);
  end.set_finish_reason("cancelled");
  EXPECT_TRUE(gatherer.Add(&end));
  EXPECT_EQ(end.text(), "b");
  EXPECT_EQ(end.tokens_size(), 1);
  EXPECT_EQ(end.finish_reason(), "cancelled");
  EXPECT_FALSE(gatherer.Holds(1));
}

TEST(UpdateGatherer, WritesEachAloneAndLargeOnesEarly) {
  UpdateGatherer alone(1);
  GenerationUpdate a = Token(0, 1, "a");
  EXPECT_TRUE(alone.Add(&a));
  EXPECT_EQ(a.text(), "a");
  UpdateGatherer gatherer(1 << 24);
  GenerationUpdate large = Token(0, 1, std::string(300 << 10, 'x'));
  EXPECT_TRUE(gatherer.Add(&large));
  EXPECT_EQ(large.text().size(), size_t{300} << 10);
  GenerationUpdate small = Token(0, 2, "y");
  EXPECT_FALSE(gatherer.Add(&small));
}

}  // namespace
}  // namespace sage::server
