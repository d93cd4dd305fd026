// Where things lie in a KV page of the device, how attention is cut into blocks, and what is uploaded of it a step.
//
// A page: [kv head]{ K [page_tokens][Dp], V [page_tokens][Dp], for 8-bit formats the scales of K and of V [page_tokens]
// f32, for float formats the page's first key [Dp] f16 }, Dp = D padded to 16, padding zero. A key whose scale is
// negative is code * |scale| plus the page's first key. A sink page holds f16: [kv head][page_tokens][Dp] of K, the
// next entry of the page table the same of V.
#pragma once

#include <cstdint>

namespace sage::cuda {

struct KvOffsets {
  int64_t v = 0, k_scale = 0, v_scale = 0, k_reference = 0, head = 0, page = 0, sink_head = 0;
};
constexpr KvOffsets MakeKvOffsets(int64_t KH, int64_t Dp, int64_t page_tokens, int64_t value_bytes, bool scales,
                                  bool reference) {
  KvOffsets out;
  out.v = page_tokens * Dp * value_bytes;
  out.k_scale = 2 * out.v;
  out.v_scale = out.k_scale + (scales ? page_tokens * 4 : 0);
  out.k_reference = out.v_scale + (scales ? page_tokens * 4 : 0);
  out.head = out.k_reference + (reference ? Dp * 2 : 0);
  out.page = out.head * KH;
  out.sink_head = page_tokens * Dp * 2;
  return out;
}
// Entry of page `i` in a page table (as api/backend.h has it, callable on the device).
constexpr int32_t PageEntry(int32_t i, int32_t sink_pages) { return i < sink_pages ? 2 * i : i + sink_pages; }

// A query is a row of the sequence and a head of the group: number row * group + head within the sequence.
struct PlacedSlice {
  int32_t row_begin = 0, rows = 0, context = 0;
  int32_t pages = 0;  // first entry in the list of all page tables
};
// What a block of four warps attends for, for one kv head: up to 64 queries, 16 a warp; or up to 16, with the positions
// spread over the warps. Its positions are cut into `splits` parts of `part`, a block each.
struct AttentionItem {
  int32_t slice = 0, query = 0, queries = 0;
  int32_t spread = 0;
  int32_t part = 0, splits = 1;
  int32_t state = 0;  // first row of its partial sums: [kv head][split][16 or 64 rows]
  int32_t unused = 0;
};
constexpr int kSpreadQueries = 16, kTileQueries = 64, kChunk = 16;  // kChunk: positions of one step of a warp
constexpr int ItemRows(const AttentionItem& item) { return item.spread != 0 ? kSpreadQueries : kTileQueries; }

constexpr int32_t PowerAtLeast(int32_t x) {
  int32_t p = 1;
  while (p < x) p *= 2;
  return p;
}
// Positions of a part, by the length alone: what a row computes depends on no other sequence of the step.
constexpr int32_t SpreadPart(int32_t length) { return length <= 8192 ? 256 : PowerAtLeast((length + 31) / 32); }
// For tiles of a long prompt: enough blocks come from its own tiles and heads, or else its positions are cut.
constexpr int32_t TilePart(int32_t length, int32_t blocks) {
  const int32_t splits = blocks >= 128 ? 1 : 128 / (blocks < 1 ? 1 : blocks);
  const int32_t part = PowerAtLeast((length + splits - 1) / splits);
  return part < 512 ? 512 : part;
}
constexpr int32_t SplitCount(int32_t length, int32_t part) { return (length + part - 1) / part; }

}  // namespace sage::cuda
