// Vocabulary tables and the sorted prefix index.
#include "engine/tokenizer/vocabulary.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {

absl::Status Vocabulary::Add(std::string_view text, int64_t id) {
  if (id < 0 || id > kMaxId) {
    return MakeError(absl::StatusCode::kInvalidArgument, "TOKENIZER_INVALID",
                     absl::StrCat("tokenizer vocabulary: ids are 0 to ", kMaxId, ", got ", id));
  }
  const size_t at = static_cast<size_t>(id);
  if (at >= texts_.size()) {
    texts_.resize(at + 1);
    present_.resize(at + 1, false);
  }
  if (!present_[at]) {
    texts_[at] = std::string(text);
    present_[at] = true;
  }
  ids_[text] = static_cast<int32_t>(id);
  return absl::OkStatus();
}

PrefixIndex::PrefixIndex(std::vector<std::pair<std::string, int32_t>> entries) {
  std::erase_if(entries, [](const auto& e) { return e.first.empty(); });
  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  entries.erase(
      std::unique(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.first == b.first; }),
      entries.end());
  entries_ = std::move(entries);
  first_.assign(257, 0);
  for (const auto& entry : entries_) ++first_[static_cast<uint8_t>(entry.first[0]) + 1];
  for (size_t i = 1; i < first_.size(); ++i) first_[i] += first_[i - 1];
}

std::pair<size_t, int32_t> PrefixIndex::Longest(std::string_view text) const {
  std::pair<size_t, int32_t> best{0, -1};
  ForEachPrefix(text, [&](size_t length, int32_t value) { best = {length, value}; });
  return best;
}

}  // namespace sage
