// Module patterns on the bounded regular expressions of the tokenizer.
#include "engine/api/module_pattern.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/regex.h"

namespace sage {
namespace {

absl::Status BadPattern(std::string_view pattern, const absl::Status& cause) {
  return MakeError(absl::StatusCode::kInvalidArgument, "BAD_MODULE_PATTERN",
                   absl::StrCat("module pattern '", std::string(pattern.substr(0, 120)),
                                "': must be a regular expression: ", std::string(cause.message()).substr(0, 200)));
}

}  // namespace

absl::StatusOr<ModulePattern> ModulePattern::Compile(std::string_view pattern) {
  // On its own first: a stray parenthesis must not close the group below.
  const auto alone = Regex::Compile(pattern);
  if (!alone.ok()) return BadPattern(pattern, alone.status());
  ModulePattern out;
  out.text_ = std::string(pattern);
  absl::StatusOr<std::shared_ptr<const Regex>> anchored = Regex::Compile(absl::StrCat("\\A(?:", out.text_, ")"));
  if (!anchored.ok()) return BadPattern(pattern, anchored.status());
  out.regex_ = *std::move(anchored);
  return out;
}

absl::StatusOr<bool> ModulePattern::Matches(std::string_view module) const {
  std::vector<TextRange> found;
  const absl::Status status = regex_->FindAll(module, found);
  if (!status.ok()) return Annotate(status, absl::StrCat("module pattern '", text_.substr(0, 120), "'"));
  return !found.empty() && found[0].begin == 0;
}

}  // namespace sage
