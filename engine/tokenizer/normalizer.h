// The text rewriting before pre-tokenization: Hugging Face's normalizers and SentencePiece's.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "engine/tokenizer/regex.h"
#include "engine/tokenizer/vocabulary.h"

namespace sage {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // Rewrites `text` in place. `removed_front` is set when the first characters were removed.
  virtual absl::Status Apply(std::string& text, bool* removed_front) const = 0;
};
using Normalizers = std::vector<std::unique_ptr<Normalizer>>;

absl::Status ApplyNormalizers(const Normalizers& normalizers, std::string& text, bool* removed_front);

// The "normalizer" of a tokenizer.json (null: none). UNIMPLEMENTED with the type's name when it is not known.
absl::StatusOr<Normalizers> ParseNormalizers(const Json& json);

std::unique_ptr<Normalizer> MakePrepend(std::string text);
std::unique_ptr<Normalizer> MakeReplaceLiteral(std::string from, std::string to);
std::unique_ptr<Normalizer> MakeNfc();

// SentencePiece's compiled character map: a double-array trie and the replacement texts.
class PrecompiledMap {
 public:
  // INVALID_ARGUMENT when sizes do not fit. An empty blob maps nothing.
  static absl::StatusOr<PrecompiledMap> Parse(std::string_view blob);
  bool empty() const { return units_.empty(); }
  // Length of the shortest or longest key that `text` begins with, 0 when none, and its replacement.
  size_t Find(std::string_view text, bool longest, std::string_view* replacement) const;

 private:
  std::vector<uint32_t> units_;
  std::string replacements_;
};

struct SentencePieceRules {
  PrecompiledMap map;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  bool whitespace_as_suffix = false;
  PrefixIndex user_defined;  // left as they are
};
std::unique_ptr<Normalizer> MakeSentencePieceNormalizer(SentencePieceRules rules);

}  // namespace sage
