// The tokens of a template: text, and names, literals and operators inside tags. trim_blocks and lstrip_blocks are on.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace sage::jinja {

enum class Tok : uint8_t {
  kData,
  kBlockBegin,
  kBlockEnd,
  kVariableBegin,
  kVariableEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,  // text holds it
  kEnd,
};

struct Token {
  Tok type = Tok::kEnd;
  int line = 0;
  std::string text;
  int64_t integer = 0;
  double number = 0;
};

// INVALID_ARGUMENT with reason CHAT_TEMPLATE_SYNTAX and the line. The last token is kEnd.
absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source);
absl::Status SyntaxError(int line, std::string_view message);

}  // namespace sage::jinja
