// From token texts back to text: Hugging Face's decoder chain.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "engine/tokenizer/regex.h"

namespace sage {

struct DecodeStep {
  enum class Kind { kByteLevel, kReplace, kByteFallback, kFuse, kStrip, kMetaspace, kWordPiece, kBpe };
  Kind kind;
  std::shared_ptr<const Regex> pattern;  // kReplace
  std::string text;            // what Replace writes, Strip strips, WordPiece's prefix, BPE's suffix, the mark
  size_t start = 0, stop = 0;  // kStrip
  bool flag = false;           // Metaspace: the first token loses its mark; WordPiece: cleanup
};

class TokenDecoder {
 public:
  std::vector<DecodeStep> steps;
  bool join_with_space = false;  // no decoder at all

  // The bytes of the text; `first` when tokens[0] begins the text.
  std::string Decode(std::vector<std::string> tokens, bool first) const;
  bool has_byte_fallback() const;
  bool needs_whole_text() const;
};

absl::StatusOr<TokenDecoder> ParseTokenDecoder(const Json& json);
// ▁ to blank, byte tokens to bytes, and one leading blank dropped when `strip`.
TokenDecoder SpmDecoder(bool strip);

}  // namespace sage
