// Buffer reuse of the step-local activation cache.
#include "engine/api/step_context.h"

#include <cstdlib>

namespace sage {

ActivationCache::Entry& ActivationCache::Claim(size_t bytes) {
  Entry* best = nullptr;
  for (Entry& entry : entries_) {
    if (entry.live || entry.buffer.bytes() < bytes) continue;
    if (best == nullptr || entry.buffer.bytes() < best->buffer.bytes()) best = &entry;
  }
  if (best != nullptr) return *best;
  // An entry that found no memory the last time is tried again.
  if (entries_.empty() || !entries_.back().buffer.empty()) entries_.emplace_back();
  auto buffer = memory_->Allocate(bytes);
  // Activation forms are a few MB at most; running out here is out of memory for the process.
  if (!buffer.ok() && memory_->is_host()) std::abort();
  if (buffer.ok()) entries_.back().buffer = std::move(*buffer);
  return entries_.back();
}

}  // namespace sage
