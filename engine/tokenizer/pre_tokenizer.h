// Cutting a normalized text into the words a model tokenizes one by one.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "engine/tokenizer/regex.h"

namespace sage {

// A text and its words, in order.
struct WordList {
  struct Word {
    size_t begin;
    size_t end;
    bool at_start;  // begins where the whole input begins
  };
  std::string text;
  std::vector<Word> words;
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual absl::Status Apply(WordList& list) const = 0;
};
using PreTokenizers = std::vector<std::unique_ptr<PreTokenizer>>;

// The "pre_tokenizer" of a tokenizer.json (null: none).
absl::StatusOr<PreTokenizers> ParsePreTokenizers(const Json& json);

enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
std::unique_ptr<PreTokenizer> MakeSplit(std::shared_ptr<const Regex> pattern, SplitBehavior behavior, bool invert);
std::unique_ptr<PreTokenizer> MakeByteLevel(bool add_prefix_space, bool use_regex);

}  // namespace sage
