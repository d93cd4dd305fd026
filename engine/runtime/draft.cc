// A scan from the end of the sequence; a few microseconds at thousands of ids.
#include "engine/runtime/draft.h"

#include <algorithm>

namespace sage {
namespace {

// Begin of the latest occurrence of the last `n` ids before themselves, or -1.
int64_t FindEarlier(absl::Span<const int32_t> ids, int64_t n) {
  const auto size = static_cast<int64_t>(ids.size());
  const int32_t* tail = ids.data() + size - n;
  for (int64_t begin = size - n - 1; begin >= 0; --begin) {
    if (std::equal(tail, tail + n, ids.data() + begin)) return begin;
  }
  return -1;
}

}  // namespace

std::vector<int32_t> DraftFromNgrams(absl::Span<const int32_t> ids, int64_t count) {
  const auto size = static_cast<int64_t>(ids.size());
  if (count <= 0) return {};
  for (const int64_t n : {3, 2}) {
    if (size <= n) continue;
    const int64_t begin = FindEarlier(ids, n);
    if (begin < 0) continue;
    const int64_t first = begin + n;
    const int64_t last = std::min(size, first + count);
    return std::vector<int32_t>(ids.begin() + first, ids.begin() + last);
  }
  return {};
}

int64_t NextDraftLength(int64_t drafted, int64_t accepted) {
  if (drafted == 0) return kFirstDraftLength;
  return std::clamp<int64_t>(accepted + 1 + (accepted == drafted ? 2 : 0), 1, kMaxDraftLength);
}

}  // namespace sage
