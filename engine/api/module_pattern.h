// Regular expressions over module names, as quantization configs of other tools use them: matched from the first
// character on, not necessarily to the last (Python's re.match).
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace sage {

class Regex;

class ModulePattern {
 public:
  // INVALID_ARGUMENT (BAD_MODULE_PATTERN) when it is no regular expression.
  static absl::StatusOr<ModulePattern> Compile(std::string_view pattern);
  // RESOURCE_EXHAUSTED when a match takes too many steps.
  absl::StatusOr<bool> Matches(std::string_view module) const;
  const std::string& text() const { return text_; }

 private:
  std::string text_;
  std::shared_ptr<const Regex> regex_;
};

}  // namespace sage
