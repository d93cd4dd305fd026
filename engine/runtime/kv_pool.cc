// A stack of free page numbers (the page used last is used next, while it is still in cache) and an index of full
// pages.
#include "engine/runtime/kv_pool.h"

#include <algorithm>

namespace sage {
namespace {

uint64_t Mix(uint64_t x) {  // the finalizer of splitmix64
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

uint64_t HashPage(uint64_t parent, absl::Span<const int32_t> ids) {
  uint64_t hash = Mix(parent + 0x9E3779B97F4A7C15u);
  for (const int32_t id : ids) hash = Mix(hash ^ static_cast<uint32_t>(id));
  return hash;
}

}  // namespace

KvPool::KvPool(int64_t pages, int page_tokens, int sink_pages, bool keeps_prefixes)
    : pages_(pages),
      page_tokens_(page_tokens),
      sink_pages_(sink_pages),
      keeps_prefixes_(keeps_prefixes),
      state_(static_cast<size_t>(pages)) {
  free_.reserve(static_cast<size_t>(pages));
  for (int64_t page = pages - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
}

void KvPool::PublishFigures() {
  const int64_t idle = static_cast<int64_t>(idle_.size()) + idle_partners_;
  used_.store(pages_ - static_cast<int64_t>(free_.size()) - idle, std::memory_order_relaxed);
  cached_.store(idle, std::memory_order_relaxed);
}

int32_t KvPool::Find(uint64_t parent, uint64_t hash, absl::Span<const int32_t> ids) const {
  const auto found = known_.find(hash);
  if (found == known_.end()) return -1;
  const Page& page = state_[static_cast<size_t>(found->second)];
  return page.parent == parent && absl::MakeConstSpan(page.ids) == ids ? found->second : -1;
}

void KvPool::Hold(int32_t number) {
  Page& page = state_[static_cast<size_t>(number)];
  if (page.holders++ > 0 || page.node == 0) return;
  idle_.erase(page.idle);
  if (page.partner >= 0) --idle_partners_;
}

int32_t KvPool::TakeFree() {
  int32_t number = 0;
  if (!free_.empty()) {
    number = free_.back();
    free_.pop_back();
  } else {
    number = idle_.front();
    idle_.pop_front();
    Page& page = state_[static_cast<size_t>(number)];
    known_.erase(page.hash);
    page.node = 0;
    if (page.partner >= 0) {
      state_[static_cast<size_t>(page.partner)].is_partner = false;
      free_.push_back(page.partner);
      page.partner = -1;
      --idle_partners_;
    }
  }
  state_[static_cast<size_t>(number)].holders = 1;
  return number;
}

int64_t KvPool::Attach(absl::Span<const int32_t> ids, std::vector<int32_t>& table, PrefixChain& chain) {
  const auto step = static_cast<size_t>(page_tokens_);
  size_t begin = 0;
  for (; begin + step < ids.size(); begin += step) {
    const absl::Span<const int32_t> part = ids.subspan(begin, step);
    const int32_t page = Find(chain.node, HashPage(chain.node, part), part);
    if (page < 0) break;
    const Page& state = state_[static_cast<size_t>(page)];
    for (const int32_t number : {page, state.partner}) {
      if (number < 0) continue;
      Hold(number);
      table.push_back(number);
    }
    chain.node = state.node;
    ++chain.pages;
  }
  PublishFigures();
  return static_cast<int64_t>(begin);
}

void KvPool::Register(absl::Span<const int32_t> ids, absl::Span<const int32_t> table, PrefixChain& chain) {
  if (!keeps_prefixes_) return;
  const auto step = static_cast<size_t>(page_tokens_);
  for (auto index = static_cast<size_t>(chain.pages); (index + 1) * step <= ids.size(); ++index) {
    const absl::Span<const int32_t> part = ids.subspan(index * step, step);
    const uint64_t hash = HashPage(chain.node, part);
    int32_t known = Find(chain.node, hash, part);  // another sequence may have computed the same
    if (known < 0) {
      if (known_.contains(hash)) return;  // a collision: this sequence's later pages stay unknown
      const auto entry = static_cast<size_t>(KvPageIndex(static_cast<int64_t>(index), sink_pages_));
      known = table[entry];
      Page& page = state_[static_cast<size_t>(known)];
      if (static_cast<int64_t>(index) < sink_pages_) {
        page.partner = table[entry + 1];
        state_[static_cast<size_t>(page.partner)].is_partner = true;
      }
      page.parent = chain.node;
      page.hash = hash;
      page.ids.assign(part.begin(), part.end());
      page.node = ++last_node_;
      known_[hash] = known;
    }
    chain.node = state_[static_cast<size_t>(known)].node;
    ++chain.pages;
  }
}

bool KvPool::Grow(std::vector<int32_t>& table, int64_t positions) {
  const int64_t missing = PagesFor(positions) - static_cast<int64_t>(table.size());
  if (missing <= 0) return true;
  if (missing > free()) return false;
  for (int64_t i = 0; i < missing; ++i) table.push_back(TakeFree());
  PublishFigures();
  return true;
}

void KvPool::Release(std::vector<int32_t>& table) {
  // From the last page on, so that the ends of chains are older than their beginnings.
  for (auto number = table.rbegin(); number != table.rend(); ++number) {
    Page& page = state_[static_cast<size_t>(*number)];
    if (--page.holders > 0) continue;
    if (page.is_partner) continue;  // it stays or goes with the page it belongs to
    if (page.node == 0) {
      free_.push_back(*number);
      continue;
    }
    page.idle = idle_.insert(idle_.end(), *number);
    if (page.partner >= 0) ++idle_partners_;
  }
  table.clear();
  PublishFigures();
}

}  // namespace sage
