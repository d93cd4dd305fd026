// The regular expressions of tokenizer files (Oniguruma's Ruby dialect) run by PCRE2 under match limits.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace sage {

struct TextRange {
  size_t begin = 0;
  size_t end = 0;
};

class Regex {
 public:
  // INVALID_ARGUMENT with the offset when the pattern does not compile.
  static absl::StatusOr<std::shared_ptr<const Regex>> Compile(std::string_view pattern);
  static absl::StatusOr<std::shared_ptr<const Regex>> CompileLiteral(std::string_view text);
  ~Regex();
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

  // Appends the non-overlapping matches from left to right. `text` is valid UTF-8. An empty match right after another
  // match is skipped, as Oniguruma's iterator does. RESOURCE_EXHAUSTED (REGEX_LIMIT) when a match takes too many steps.
  absl::Status FindAll(std::string_view text, std::vector<TextRange>& matches) const;

 private:
  struct Code;
  Regex() = default;
  absl::Status FindRegex(std::string_view text, std::vector<TextRange>& matches) const;
  std::unique_ptr<Code> code_;
  std::string literal_;  // when not empty, a plain search replaces the engine
};

}  // namespace sage
