// Cuts the attention of a step into items and lays out what kernels read of it: one upload a step.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/types/span.h"
#include "engine/api/backend.h"
#include "engine/backends/cuda/kv_plan.h"

namespace sage::cuda {

// The lists of a step as one block of 32-bit words: slices, items, the slice of each row, the page tables.
struct AttentionPlan {
  std::vector<int32_t> words;
  int64_t slices = 0, items = 0, row_slice = 0, pages = 0;  // where each list begins, in words
  int32_t rows = 0;                                         // of the batch
  int32_t item_count = 0;
  int32_t splits = 1;      // the largest of an item
  int64_t state_rows = 0;  // partial sums that items with several parts need
  bool combines = false;
};

// Slices of up to this many queries (rows times heads of a group) spread their positions over the warps.
inline void AddItems(const SequenceSlice& slice, int32_t index, int32_t group, int32_t KH,
                     std::vector<AttentionItem>* items) {
  const auto context = static_cast<int32_t>(slice.context);
  const auto queries = static_cast<int32_t>(slice.rows) * group;
  if (queries == 0) {  // padding keeps the number of items of a recorded step
    items->push_back({.slice = index, .spread = 1, .part = kChunk});
    return;
  }
  // Rows that are few run one by one, as in a step that decodes: a row's sums do not depend on its company.
  if (slice.rows <= 8) {
    for (int32_t row = 0; row < slice.rows; ++row) {
      const int32_t length = context + row + 1, part = SpreadPart(length);
      for (int32_t first = 0; first < group; first += kSpreadQueries) {
        items->push_back({.slice = index,
                          .query = row * group + first,
                          .queries = std::min(kSpreadQueries, group - first),
                          .spread = 1,
                          .part = part,
                          .splits = SplitCount(length, part)});
      }
    }
    return;
  }
  const int32_t tiles = (queries + kTileQueries - 1) / kTileQueries;
  const int32_t part = TilePart(context + static_cast<int32_t>(slice.rows), tiles * KH);
  // Late tiles see more positions: they begin.
  for (int32_t tile = tiles; tile-- > 0;) {
    AttentionItem item{.slice = index, .query = tile * kTileQueries, .part = part};
    item.queries = std::min(kTileQueries, queries - item.query);
    item.splits = SplitCount(context + (item.query + item.queries - 1) / group + 1, part);
    items->push_back(item);
  }
}

inline AttentionPlan PlanAttention(absl::Span<const SequenceSlice> sequences, const KvLayout& layout) {
  AttentionPlan plan;
  std::vector<PlacedSlice> slices;
  std::vector<AttentionItem> items;
  std::vector<int32_t> tables;
  const int32_t group = layout.H > 0 ? layout.H / layout.KH : 1;
  for (const SequenceSlice& s : sequences) {
    const auto index = static_cast<int32_t>(slices.size());
    slices.push_back({static_cast<int32_t>(s.row_begin), static_cast<int32_t>(s.rows), static_cast<int32_t>(s.context),
                      static_cast<int32_t>(tables.size())});
    AddItems(s, index, group, layout.KH, &items);
    if (s.rows == 0) continue;
    const int64_t pages = (s.context + s.rows + layout.page_tokens - 1) / layout.page_tokens;
    tables.insert(tables.end(), s.pages, s.pages + KvPageEntries(pages, layout.sink_pages));
    plan.rows = std::max(plan.rows, static_cast<int32_t>(s.row_begin + s.rows));
  }
  for (AttentionItem& item : items) {
    plan.splits = std::max(plan.splits, item.splits);
    if (item.splits < 2) continue;
    plan.combines = true;
    item.state = static_cast<int32_t>(plan.state_rows);
    plan.state_rows += int64_t{layout.KH} * item.splits * ItemRows(item);
  }
  // Rows without a sequence are padding; a recorded step has as many rows as sequences.
  plan.rows = std::max(plan.rows, static_cast<int32_t>(sequences.size()));
  std::vector<int32_t> row_slice(static_cast<size_t>(plan.rows), -1);
  for (size_t i = 0; i < slices.size(); ++i) {
    std::fill_n(row_slice.begin() + slices[i].row_begin, slices[i].rows, static_cast<int32_t>(i));
  }
  const auto append = [&](const auto& list) {
    const auto at = static_cast<int64_t>((plan.words.size() + 7) / 8 * 8);
    const size_t bytes = list.size() * sizeof(list[0]);
    plan.words.resize(static_cast<size_t>(at) + bytes / 4);
    if (bytes > 0) std::memcpy(plan.words.data() + at, list.data(), bytes);
    return at;
  };
  plan.slices = append(slices);
  plan.items = append(items);
  plan.row_slice = append(row_slice);
  plan.pages = append(tables);
  plan.item_count = static_cast<int32_t>(items.size());
  return plan;
}

}  // namespace sage::cuda
