// How attention is cut: every query of every sequence in exactly one item, every position in exactly one part, and cuts
// that depend on the sequence alone.
#include "engine/backends/cuda/attention_plan.h"

#include <random>
#include <set>

#include "gtest/gtest.h"

namespace sage::cuda {
namespace {

template <typename T>
const T* At(const AttentionPlan& plan, int64_t words) {
  return reinterpret_cast<const T*>(plan.words.data() + words);
}

TEST(CudaAttentionPlan, EveryQueryAndPositionOnce) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 200; ++trial) {
    const int KH = 1 + static_cast<int>(random() % 4), group = 1 + static_cast<int>(random() % 20);
    const KvLayout layout{KH, 64, 16, KH * group, static_cast<int>(random() % 3)};
    std::vector<SequenceSlice> sequences;
    std::vector<std::vector<int32_t>> tables;
    int64_t rows = 0;
    for (int s = 0; s < 5; ++s) {
      SequenceSlice slice;
      slice.row_begin = rows;
      slice.rows = random() % 3 == 0 ? static_cast<int64_t>(random() % 200) : 1;
      slice.context = static_cast<int64_t>(random() % 20000);
      const int64_t pages = KvPageEntries((slice.context + slice.rows + 15) / 16, layout.sink_pages);
      tables.emplace_back(static_cast<size_t>(pages), s);
      rows += slice.rows;
      sequences.push_back(slice);
    }
    for (size_t s = 0; s < sequences.size(); ++s) sequences[s].pages = tables[s].data();
    const AttentionPlan plan = PlanAttention(sequences, layout);
    std::set<std::pair<int32_t, int32_t>> queries;
    std::set<int64_t> state_rows;
    for (int32_t i = 0; i < plan.item_count; ++i) {
      const AttentionItem& item = At<AttentionItem>(plan, plan.items)[i];
      const SequenceSlice& slice = sequences[static_cast<size_t>(item.slice)];
      ASSERT_LE(item.queries, ItemRows(item));
      if (item.queries == 0) continue;
      const int64_t length = slice.context + (item.query + item.queries - 1) / group + 1;
      ASSERT_GE(int64_t{item.part} * item.splits, length);
      ASSERT_LT(int64_t{item.part} * (item.splits - 1), length);
      ASSERT_EQ(item.part % kChunk, 0);
      ASSERT_LE(item.splits, plan.splits);
      for (int32_t q = 0; q < item.queries; ++q) ASSERT_TRUE(queries.emplace(item.slice, item.query + q).second);
      for (int64_t r = 0; item.splits > 1 && r < int64_t{KH} * item.splits * ItemRows(item); ++r) {
        ASSERT_TRUE(state_rows.insert(item.state + r).second);
      }
    }
    ASSERT_EQ(static_cast<int64_t>(queries.size()), rows * group);
    ASSERT_EQ(static_cast<int64_t>(state_rows.size()), plan.state_rows);
    for (int64_t row = 0; row < rows; ++row) {
      const int32_t s = At<int32_t>(plan, plan.row_slice)[row];
      const SequenceSlice& slice = sequences[static_cast<size_t>(s)];
      ASSERT_TRUE(row >= slice.row_begin && row < slice.row_begin + slice.rows);
      ASSERT_EQ(At<int32_t>(plan, plan.pages)[At<PlacedSlice>(plan, plan.slices)[s].pages], s);
    }
  }
}

TEST(CudaAttentionPlan, PaddingHasItemsAndNoRows) {
  const int32_t page[] = {3, 4};
  std::vector<SequenceSlice> sequences(4);
  sequences[0] = {0, 1, 17, 18, page};
  const AttentionPlan plan = PlanAttention(sequences, {2, 64, 16, 8});
  EXPECT_EQ(plan.item_count, 4);
  EXPECT_EQ(plan.rows, 4);
  for (int i = 1; i < 4; ++i) {
    EXPECT_EQ(At<AttentionItem>(plan, plan.items)[i].queries, 0);
    EXPECT_EQ(At<int32_t>(plan, plan.row_slice)[i], -1);
  }
  // The same lists at the same places whatever the sequences are: a recorded step reads them again.
  std::vector<SequenceSlice> others(4);
  for (size_t i = 0; i < 4; ++i) others[i] = {static_cast<int64_t>(i), 1, 5, 6, page};
  const AttentionPlan next = PlanAttention(others, {2, 64, 16, 8});
  EXPECT_EQ(next.items, plan.items);
  EXPECT_EQ(next.row_slice, plan.row_slice);
  EXPECT_EQ(next.pages, plan.pages);
}

}  // namespace
}  // namespace sage::cuda
