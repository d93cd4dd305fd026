// One pass each over a row of logits.
#include "engine/runtime/logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/base/status.h"

namespace sage {

absl::StatusOr<double> LogNormalizer(absl::Span<const float> logits) {
  float largest = -std::numeric_limits<float>::infinity();
  bool bad = logits.empty();
  for (const float x : logits) {
    bad |= !(x <= std::numeric_limits<float>::max());
    largest = std::max(largest, x);
  }
  if (bad || !std::isfinite(largest)) {
    return MakeError(absl::StatusCode::kInternal, "NON_FINITE_LOGITS",
                     "logits: every value must be finite or -inf and one finite, got NaN, +inf or nothing finite");
  }
  double sum = 0;
  for (const float x : logits) sum += static_cast<double>(std::exp(x - largest));
  return static_cast<double>(largest) + std::log(sum);
}

int64_t RankOf(absl::Span<const float> logits, int32_t id) {
  const float own = logits[static_cast<size_t>(id)];
  int64_t rank = 0;
  for (const float x : logits) rank += x > own ? 1 : 0;
  return rank;
}

std::vector<std::pair<int32_t, float>> TopLogits(absl::Span<const float> logits, int count) {
  using Entry = std::pair<int32_t, float>;
  const auto larger = [](const Entry& a, const Entry& b) {
    return a.second > b.second || (a.second == b.second && a.first < b.first);
  };
  std::vector<Entry> heap;  // the smallest kept entry in front
  const size_t wanted = std::min(logits.size(), static_cast<size_t>(std::max(count, 0)));
  if (wanted == 0) return heap;
  heap.reserve(wanted);
  for (size_t i = 0; i < logits.size(); ++i) {
    const Entry entry{static_cast<int32_t>(i), logits[i]};
    if (heap.size() < wanted) {
      heap.push_back(entry);
      std::push_heap(heap.begin(), heap.end(), larger);
    } else if (entry.second > heap.front().second) {
      std::pop_heap(heap.begin(), heap.end(), larger);
      heap.back() = entry;
      std::push_heap(heap.begin(), heap.end(), larger);
    }
  }
  std::sort(heap.begin(), heap.end(), larger);
  return heap;
}

}  // namespace sage
