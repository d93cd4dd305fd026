// What the component parsers of tokenizer.json share: patterns, sequences, replacing matches, common errors.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "engine/tokenizer/regex.h"

namespace sage {

// No rewriting may grow a text beyond this: a hostile file could double it at every step.
constexpr size_t kMaxRewrittenBytes = size_t{512} << 20;

absl::Status RewrittenTooLong(size_t bytes);
absl::Status UnknownComponent(std::string_view kind, const std::string& type);

// The member "pattern": {"String": s}, {"Regex": r}, or a plain string.
absl::StatusOr<std::shared_ptr<const Regex>> ParsePattern(const Json& json);

// The members of nested {"type": "Sequence", <key>: [...]} objects in order; anything else is one member.
absl::Status FlattenSequence(const Json& json, const char* key, std::vector<const Json*>& out);

absl::Status ReplaceMatches(std::string& text, const std::vector<TextRange>& matches, std::string_view content);

}  // namespace sage
