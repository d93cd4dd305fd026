// Stop strings are short and few: each new piece is searched directly.
#include "engine/runtime/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace sage {

StopMatcher::Result StopMatcher::Append(std::string_view piece) {
  Result out;
  if (stops_.empty()) {
    out.text = std::string(piece);
    return out;
  }
  held_.append(piece);
  size_t best_end = std::string::npos, best_begin = 0;
  for (const std::string& stop : stops_) {
    const size_t begin = held_.find(stop);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (best_end == std::string::npos || end < best_end || (end == best_end && begin < best_begin)) {
      best_end = end;
      best_begin = begin;
      out.match = stop;
    }
  }
  if (best_end != std::string::npos) {
    out.text = held_.substr(0, best_begin);
    held_.clear();
    return out;
  }
  size_t keep = 0;  // longest end of the text that begins a stop string
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, held_.size()); length > keep; --length) {
      if (held_.compare(held_.size() - length, length, stop, 0, length) == 0) {
        keep = length;
        break;
      }
    }
  }
  out.text = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return out;
}

std::string StopMatcher::Flush() { return std::exchange(held_, std::string()); }

}  // namespace sage
