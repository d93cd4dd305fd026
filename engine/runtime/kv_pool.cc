// A stack of free page numbers: the page used last is used next, while it is still in cache.
#include "engine/runtime/kv_pool.h"

namespace sage {

KvPool::KvPool(int64_t pages, int page_tokens, int sink_pages)
    : pages_(pages), page_tokens_(page_tokens), sink_pages_(sink_pages) {
  free_.reserve(static_cast<size_t>(pages));
  for (int64_t page = pages - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
}

bool KvPool::Grow(std::vector<int32_t>& table, int64_t positions) {
  const int64_t missing = PagesFor(positions) - static_cast<int64_t>(table.size());
  if (missing <= 0) return true;
  if (missing > static_cast<int64_t>(free_.size())) return false;
  for (int64_t i = 0; i < missing; ++i) {
    table.push_back(free_.back());
    free_.pop_back();
  }
  used_.store(pages_ - static_cast<int64_t>(free_.size()), std::memory_order_relaxed);
  return true;
}

void KvPool::Release(std::vector<int32_t>& table) {
  for (auto page = table.rbegin(); page != table.rend(); ++page) free_.push_back(*page);
  table.clear();
  used_.store(pages_ - static_cast<int64_t>(free_.size()), std::memory_order_relaxed);
}

}  // namespace sage
