// Patterns, sequences and errors shared by the component parsers.
#include "engine/tokenizer/pattern.h"

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {

absl::Status RewrittenTooLong(size_t bytes) {
  return MakeError(
      absl::StatusCode::kResourceExhausted, "TEXT_TOO_LONG",
      absl::StrCat("tokenizer: a rewritten text must stay under ", kMaxRewrittenBytes, " bytes, got ", bytes));
}

absl::Status UnknownComponent(std::string_view kind, const std::string& type) {
  return MakeError(absl::StatusCode::kUnimplemented, "TOKENIZER_UNSUPPORTED",
                   absl::StrCat("tokenizer.json: unknown ", std::string(kind), " type '", type.substr(0, 80), "'"));
}

absl::StatusOr<std::shared_ptr<const Regex>> ParsePattern(const Json& json) {
  const auto it = json.find("pattern");
  if (it != json.end() && it->is_string()) return Regex::CompileLiteral(it->get_ref<const std::string&>());
  if (it != json.end() && it->is_object()) {
    const auto literal = it->find("String");
    if (literal != it->end() && literal->is_string())
      return Regex::CompileLiteral(literal->get_ref<const std::string&>());
    const auto regex = it->find("Regex");
    if (regex != it->end() && regex->is_string()) return Regex::Compile(regex->get_ref<const std::string&>());
  }
  return MakeError(absl::StatusCode::kInvalidArgument, "TOKENIZER_INVALID",
                   "tokenizer.json: pattern must be {\"String\": text} or {\"Regex\": text}");
}

absl::Status FlattenSequence(const Json& json, const char* key, std::vector<const Json*>& out) {
  // ParseJson bounds the depth of the document, and so this recursion.
  if (!json.is_object()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "TOKENIZER_INVALID",
                     absl::StrCat("tokenizer.json ", key, ": components must be objects, got ", json.type_name()));
  }
  const auto type = json.find("type");
  if (type == json.end() || !type->is_string() || *type != "Sequence") {
    out.push_back(&json);
    return absl::OkStatus();
  }
  const auto members = json.find(key);
  if (members == json.end() || !members->is_array()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "TOKENIZER_INVALID",
                     absl::StrCat("tokenizer.json: a Sequence must have the array ", key));
  }
  for (const Json& member : *members) SAGE_RETURN_IF_ERROR(FlattenSequence(member, key, out));
  return absl::OkStatus();
}

absl::Status ReplaceMatches(std::string& text, const std::vector<TextRange>& matches, std::string_view content) {
  if (content.size() > 0 && matches.size() > kMaxRewrittenBytes / content.size()) {
    return RewrittenTooLong(matches.size() * content.size());
  }
  std::string out;
  out.reserve(text.size() + matches.size() * content.size());
  size_t at = 0;
  for (const TextRange& match : matches) {
    out.append(text, at, match.begin - at);
    out += content;
    at = match.end;
  }
  out.append(text, at, std::string::npos);
  text = std::move(out);
  return absl::OkStatus();
}

}  // namespace sage
