// Which KV pages are free, which are shared, and which keep a prefix that a later sequence may take over.
//
// A full page is known by its ids and by the page before it (a chain from the first position on). Because a row's bits
// depend on neither batch nor chunking, taking over such a page changes nothing but the time. A page keeps the scales
// it was written with; pages nobody holds stay until their memory is needed, the one released longest ago goes first.
// Owned by the step thread; the figures may be read from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

#include "absl/types/span.h"
#include "engine/api/backend.h"

namespace sage {

// How far the pages of a sequence are known to the pool.
struct PrefixChain {
  uint64_t node = 0;  // of the last known page; before the first page what sets this sequence's positions apart
  int64_t pages = 0;
};

class KvPool {
 public:
  KvPool(int64_t pages, int page_tokens, int sink_pages = 0, bool keeps_prefixes = false);

  bool keeps_prefixes() const { return keeps_prefixes_; }
  int page_tokens() const { return page_tokens_; }
  int64_t pages() const { return pages_; }
  int64_t used() const { return used_.load(std::memory_order_relaxed); }      // held by sequences
  int64_t cached() const { return cached_.load(std::memory_order_relaxed); }  // held by nobody, still of use
  int64_t free() const { return pages_ - used(); }                            // cached pages among them
  // Entries of a page table that holds `positions`.
  int64_t PagesFor(int64_t positions) const {
    return KvPageEntries((positions + page_tokens_ - 1) / page_tokens_, sink_pages_);
  }

  // Takes over the known pages that begin `ids` into the empty `table`; returns the positions they hold. At least one
  // id is left to compute.
  int64_t Attach(absl::Span<const int32_t> ids, std::vector<int32_t>& table, PrefixChain& chain);
  // Makes known the full pages of `ids`, all of them computed.
  void Register(absl::Span<const int32_t> ids, absl::Span<const int32_t> table, PrefixChain& chain);
  // Grows `table` to cover `positions`; false (and nothing changes) when too few pages are free.
  bool Grow(std::vector<int32_t>& table, int64_t positions);
  // Gives every page of `table` back and empties it.
  void Release(std::vector<int32_t>& table);

 private:
  struct Page {
    int32_t holders = 0;
    uint64_t node = 0;  // 0 = not known
    uint64_t parent = 0, hash = 0;
    std::vector<int32_t> ids;
    int32_t partner = -1;     // the second page of a known sink page: it is held and given back with the first
    bool is_partner = false;  // of a known one
    std::list<int32_t>::iterator idle;  // in idle_, while known and held by nobody
  };

  // The known page with these ids after `parent`, or -1.
  int32_t Find(uint64_t parent, uint64_t hash, absl::Span<const int32_t> ids) const;
  void Hold(int32_t page);
  int32_t TakeFree();
  void PublishFigures();

  const int64_t pages_;
  const int page_tokens_, sink_pages_;
  const bool keeps_prefixes_;
  std::vector<Page> state_;
  std::vector<int32_t> free_;
  std::list<int32_t> idle_;                      // known pages without a holder, longest ago first
  std::unordered_map<uint64_t, int32_t> known_;  // hash of (parent, ids) -> page; a collision is a miss
  uint64_t last_node_ = 0;
  int64_t idle_partners_ = 0;
  std::atomic<int64_t> used_{0}, cached_{0};
};

}  // namespace sage
