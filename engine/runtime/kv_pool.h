// Which KV pages are free. Owned by the step thread; the figures may be read from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "engine/api/backend.h"

namespace sage {

class KvPool {
 public:
  KvPool(int64_t pages, int page_tokens, int sink_pages = 0);

  int page_tokens() const { return page_tokens_; }
  int64_t pages() const { return pages_; }
  int64_t used() const { return used_.load(std::memory_order_relaxed); }
  int64_t free() const { return pages_ - used(); }
  // Entries of a page table that holds `positions`.
  int64_t PagesFor(int64_t positions) const {
    return KvPageEntries((positions + page_tokens_ - 1) / page_tokens_, sink_pages_);
  }

  // Grows `table` to cover `positions`; false (and nothing changes) when too few pages are free.
  bool Grow(std::vector<int32_t>& table, int64_t positions);
  // Gives every page of `table` back and empties it.
  void Release(std::vector<int32_t>& table);

 private:
  const int64_t pages_;
  const int page_tokens_, sink_pages_;
  std::vector<int32_t> free_;
  std::atomic<int64_t> used_{0};
};

}  // namespace sage
