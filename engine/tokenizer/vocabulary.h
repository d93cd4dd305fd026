// The table between token texts and ids, and prefix search over a set of texts.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"

namespace sage {

// Debian's Abseil has its own string_view, so look-ups by std::string_view need their own hash.
struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
struct TextEqual {
  using is_transparent = void;
  bool operator()(std::string_view a, std::string_view b) const { return a == b; }
};
template <typename V>
using TextMap = absl::flat_hash_map<std::string, V, TextHash, TextEqual>;

class Vocabulary {
 public:
  static constexpr int64_t kMaxId = 8'000'000;  // an id beyond this is a broken file, not a vocabulary

  // The first text of an id and the last id of a text win. INVALID_ARGUMENT on an id out of bounds.
  absl::Status Add(std::string_view text, int64_t id);
  std::optional<int32_t> Find(std::string_view text) const {
    const auto it = ids_.find(text);
    if (it == ids_.end()) return std::nullopt;
    return it->second;
  }
  const std::string* Text(int32_t id) const {
    if (id < 0 || static_cast<size_t>(id) >= texts_.size() || !present_[id]) return nullptr;
    return &texts_[id];
  }
  int32_t size() const { return static_cast<int32_t>(texts_.size()); }  // largest id + 1
  int32_t count() const { return static_cast<int32_t>(ids_.size()); }   // different texts

 private:
  TextMap<int32_t> ids_;
  std::vector<std::string> texts_;
  std::vector<bool> present_;
};

// A sorted list of texts searched by narrowing a range byte by byte; needs no memory beyond the texts.
class PrefixIndex {
 public:
  PrefixIndex() = default;
  explicit PrefixIndex(std::vector<std::pair<std::string, int32_t>> entries);
  bool empty() const { return entries_.empty(); }
  // Calls `found(length, value)` for every entry that `text` begins with, shortest first.
  template <typename F>
  void ForEachPrefix(std::string_view text, F&& found) const;
  // The longest entry `text` begins with: its length (0 when none) and value.
  std::pair<size_t, int32_t> Longest(std::string_view text) const;

 private:
  std::vector<std::pair<std::string, int32_t>> entries_;
  std::vector<uint32_t> first_;  // where the entries of each first byte begin; 257 values
};

template <typename F>
void PrefixIndex::ForEachPrefix(std::string_view text, F&& found) const {
  if (entries_.empty() || text.empty()) return;
  size_t low = first_[static_cast<uint8_t>(text[0])], high = first_[static_cast<uint8_t>(text[0]) + 1];
  for (size_t depth = 1; low < high; ++depth) {
    // All of [low, high) share the first `depth` bytes with the text; an entry of just these bytes sorts first.
    if (entries_[low].first.size() == depth) {
      found(depth, entries_[low].second);
      ++low;
    }
    if (depth >= text.size()) return;
    const uint8_t byte = static_cast<uint8_t>(text[depth]);
    size_t count = high - low;  // lower bound of `byte` at this depth
    while (count > 0) {
      const size_t half = count / 2;
      if (static_cast<uint8_t>(entries_[low + half].first[depth]) < byte) {
        low += half + 1;
        count -= half + 1;
      } else {
        count = half;
      }
    }
    size_t end = low;
    count = high - low;
    while (count > 0) {
      const size_t half = count / 2;
      if (static_cast<uint8_t>(entries_[end + half].first[depth]) <= byte) {
        end += half + 1;
        count -= half + 1;
      } else {
        count = half;
      }
    }
    high = end;
  }
}

}  // namespace sage
