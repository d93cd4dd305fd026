// The lexer: finds tags in the text, applies white-space control, and cuts the tags into tokens.
#include "engine/tokenizer/jinja_lexer.h"

#include <charconv>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/jinja_text.h"
#include "engine/tokenizer/unicode.h"

namespace sage::jinja {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

std::string NormalizeNewlines(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\r') {
      out += text[i];
    } else {
      out += '\n';
      if (i + 1 < text.size() && text[i + 1] == '\n') ++i;
    }
  }
  // Jinja drops one newline at the very end.
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : s_(std::move(source)) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (pos_ < s_.size()) SAGE_RETURN_IF_ERROR(Root());
    Add(Tok::kEnd);
    return std::move(tokens_);
  }

 private:
  bool At(size_t at, std::string_view text) const { return std::string_view(s_).substr(at, text.size()) == text; }
  size_t SkipSpace(size_t at) const {
    while (at < s_.size()) {
      const Utf8Char c = DecodeUtf8(s_, at);
      if (!IsSpace(c.code)) break;
      at += c.size;
    }
    return at;
  }
  int Line() {
    for (; counted_ < pos_; ++counted_) line_ += s_[counted_] == '\n';
    return line_;
  }
  Token& Add(Tok type, std::string text = "") {
    tokens_.push_back(Token{type, Line(), std::move(text)});
    return tokens_.back();
  }
  absl::Status Error(std::string_view message) { return SyntaxError(Line(), message); }

  // The text before a tag whose sign is `sign`, with white space taken off its end as the sign and lstrip_blocks say.
  void AddData(size_t begin, size_t end, char sign, bool variable) {
    std::string_view text = std::string_view(s_).substr(begin, end - begin);
    if (sign == '-') {
      text = Strip(text, nullptr, false, true);
    } else if (sign != '+' && !variable) {
      const size_t newline = text.rfind('\n');
      const size_t start = newline == std::string_view::npos ? 0 : newline + 1;
      if ((start > 0 || line_starting_) && SkipSpace(begin + start) >= end) text = text.substr(0, start);
    }
    if (!text.empty()) Add(Tok::kData, std::string(text));
  }

  void MoveTo(size_t to) {
    line_starting_ = to > pos_ && s_[to - 1] == '\n';
    pos_ = to;
  }

  absl::Status Root() {
    size_t at = pos_;
    for (;; ++at) {
      at = s_.find('{', at);
      if (at == std::string::npos || at + 1 >= s_.size()) {
        Add(Tok::kData, s_.substr(pos_));
        pos_ = s_.size();
        return absl::OkStatus();
      }
      if (s_[at + 1] == '%' || s_[at + 1] == '{' || s_[at + 1] == '#') break;
    }
    const char kind = s_[at + 1];
    size_t inside = at + 2;
    char sign = 0;
    if (inside < s_.size() && (s_[inside] == '-' || s_[inside] == '+')) sign = s_[inside++];
    AddData(pos_, at, sign, kind == '{');
    size_t raw = 0;
    if (kind == '%' && RawBegin(inside, &raw)) {
      MoveTo(raw);
      return Raw();
    }
    MoveTo(inside);
    if (kind == '#') return Comment();
    Add(kind == '%' ? Tok::kBlockBegin : Tok::kVariableBegin);
    return Tag(kind == '%');
  }

  bool RawBegin(size_t at, size_t* end) const {
    at = SkipSpace(at);
    if (!At(at, "raw")) return false;
    at = SkipSpace(at + 3);
    if (At(at, "-%}")) {
      *end = SkipSpace(at + 3);
      return true;
    }
    if (!At(at, "%}")) return false;
    *end = at + 2;
    return true;
  }

  // The end of a block or comment tag whose closing mark (two bytes) is at `at`, `sign` before it.
  size_t AfterClose(size_t at, char sign) const {
    at += 2;
    if (sign == '-') return SkipSpace(at);
    if (sign != '+' && at < s_.size() && s_[at] == '\n') ++at;
    return at;
  }

  absl::Status Comment() {
    const size_t close = s_.find("#}", pos_);
    if (close == std::string::npos) return Error("missing end of comment tag");
    const char before = close > pos_ ? s_[close - 1] : 0;
    MoveTo(AfterClose(close, before));
    return absl::OkStatus();
  }

  absl::Status Raw() {
    for (size_t at = s_.find("{%", pos_); at != std::string::npos; at = s_.find("{%", at + 1)) {
      size_t p = at + 2;
      char sign = 0;
      if (p < s_.size() && (s_[p] == '-' || s_[p] == '+')) sign = s_[p++];
      p = SkipSpace(p);
      if (!At(p, "endraw")) continue;
      p = SkipSpace(p + 6);
      char close = 0;
      if (p < s_.size() && (s_[p] == '-' || s_[p] == '+')) close = s_[p++];
      if (!At(p, "%}")) continue;
      AddData(pos_, at, sign, false);
      MoveTo(AfterClose(p, close));
      return absl::OkStatus();
    }
    return Error("missing end of raw directive");
  }

  absl::Status Tag(bool block) {
    std::string open;  // brackets that wait for their partner
    while (true) {
      pos_ = SkipSpace(pos_);
      if (pos_ >= s_.size()) return Error("unexpected end of template in a tag");
      if (open.empty() && TagEnd(block)) return absl::OkStatus();
      SAGE_RETURN_IF_ERROR(OneToken(&open));
    }
  }

  bool TagEnd(bool block) {
    const char sign = s_[pos_];
    const size_t at = sign == '-' || (block && sign == '+') ? pos_ + 1 : pos_;
    if (!At(at, block ? "%}" : "}}")) return false;
    Add(block ? Tok::kBlockEnd : Tok::kVariableEnd);
    const char used = at > pos_ ? sign : (block ? 0 : '+');  // '+': variables keep the newline after them
    MoveTo(AfterClose(at, used));
    return true;
  }

  absl::Status OneToken(std::string* open) {
    const char c = s_[pos_];
    if (IsDigit(c)) return Number();
    if (c == '"' || c == '\'') return String(c);
    const Utf8Char u = DecodeUtf8(s_, pos_);
    if (c == '_' || IsWordCharacter(u.code)) return Name();
    return Operator(open);
  }

  absl::Status Name() {
    size_t end = pos_;
    while (end < s_.size()) {
      const Utf8Char c = DecodeUtf8(s_, end);
      if (s_[end] != '_' && !IsWordCharacter(c.code)) break;
      end += c.size;
    }
    Add(Tok::kName, s_.substr(pos_, end - pos_));
    pos_ = end;
    return absl::OkStatus();
  }

  // (\d+_)*\d+ from `at`; `at` itself when there is none.
  size_t Digits(size_t at) const {
    size_t end = at;
    while (end < s_.size() && (IsDigit(s_[end]) || (s_[end] == '_' && end > at && IsDigit(s_[end - 1]) &&
                                                    end + 1 < s_.size() && IsDigit(s_[end + 1])))) {
      ++end;
    }
    return end;
  }

  size_t FloatEnd() const {
    const size_t whole = Digits(pos_);
    size_t end = whole;
    if (end + 1 < s_.size() && s_[end] == '.' && IsDigit(s_[end + 1])) end = Digits(end + 1);
    if (end < s_.size() && (s_[end] == 'e' || s_[end] == 'E')) {
      size_t digits = end + 1;
      if (digits < s_.size() && (s_[digits] == '+' || s_[digits] == '-')) ++digits;
      const size_t exponent = Digits(digits);
      if (exponent > digits) end = exponent;
    }
    return end > whole ? end : 0;
  }

  static std::string WithoutUnderscores(std::string_view text) {
    std::string out;
    for (const char c : text) {
      if (c != '_') out += c;
    }
    return out;
  }

  absl::Status Number() {
    const bool after_dot = pos_ > 0 && s_[pos_ - 1] == '.';
    const size_t float_end = after_dot ? 0 : FloatEnd();
    if (float_end > 0) {
      const std::string digits = WithoutUnderscores(std::string_view(s_).substr(pos_, float_end - pos_));
      Add(Tok::kFloat).number = std::strtod(digits.c_str(), nullptr);
      pos_ = float_end;
      return absl::OkStatus();
    }
    size_t end = pos_;
    int base = 10;
    if (s_[pos_] == '0' && pos_ + 1 < s_.size()) {
      const char mark = static_cast<char>(s_[pos_ + 1] | 0x20);
      base = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 10;
    }
    const std::string_view allowed = std::string_view("0123456789abcdef").substr(0, base);
    size_t begin = base == 10 ? pos_ : pos_ + 2;
    end = begin;
    while (end < s_.size()) {
      const size_t digit = s_[end] == '_' ? end + 1 : end;
      if (s_[end] == '_' && digit == begin) break;
      if (digit >= s_.size()) break;
      const char c = s_[digit] >= 'A' && s_[digit] <= 'F' ? static_cast<char>(s_[digit] | 0x20) : s_[digit];
      if (allowed.find(c) == std::string_view::npos) break;
      end = digit + 1;
    }
    const std::string digits = WithoutUnderscores(std::string_view(s_).substr(begin, end - begin));
    int64_t value = 0;
    const auto [ptr, ec] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (ec == std::errc::result_out_of_range) return Error("an integer must fit in 64 bits");
    if (ec != std::errc() || ptr != digits.data() + digits.size()) return Error("malformed number");
    if (base == 10 && digits.size() > 1 && digits[0] == '0' && value != 0) return Error("malformed number");
    Add(Tok::kInteger).integer = value;
    pos_ = end;
    return absl::OkStatus();
  }

  absl::Status String(char quote) {
    std::string out;
    size_t at = pos_ + 1;
    while (true) {
      if (at >= s_.size()) return Error("missing end of string");
      const char c = s_[at];
      if (c == quote) break;
      if (c != '\\') {
        out += c;
        ++at;
        continue;
      }
      if (at + 1 >= s_.size()) return Error("missing end of string");
      SAGE_RETURN_IF_ERROR(Escape(&at, &out));
    }
    Add(Tok::kString, std::move(out));
    pos_ = at + 1;
    return absl::OkStatus();
  }

  absl::Status Escape(size_t* at, std::string* out) {
    const char c = s_[*at + 1];
    static constexpr std::string_view kFrom = "\\'\"abfnrtv";
    static constexpr std::string_view kTo = "\\'\"\a\b\f\n\r\t\v";
    const size_t plain = kFrom.find(c);
    if (plain != std::string_view::npos) {
      *out += kTo[plain];
      *at += 2;
      return absl::OkStatus();
    }
    if (c == '\n') {
      *at += 2;
      return absl::OkStatus();
    }
    if (c >= '0' && c <= '7') {
      size_t end = *at + 1;
      int32_t code = 0;
      while (end < s_.size() && end < *at + 4 && s_[end] >= '0' && s_[end] <= '7') code = code * 8 + (s_[end++] - '0');
      AppendUtf8(*out, code);
      *at = end;
      return absl::OkStatus();
    }
    const int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (c == 'N') return Error("\\N{...} is not supported in a string");
    if (digits == 0) {  // Python keeps an unknown escape as it is
      *out += '\\';
      *at += 1;
      return absl::OkStatus();
    }
    uint32_t code = 0;
    const char* first = s_.data() + *at + 2;
    const char* last = s_.data() + std::min(s_.size(), *at + 2 + digits);
    const auto [ptr, ec] = std::from_chars(first, last, code, 16);
    if (ec != std::errc() || ptr != first + digits) return Error("truncated escape in a string");
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return Error("an escape names no character");
    AppendUtf8(*out, static_cast<int32_t>(code));
    *at += 2 + digits;
    return absl::OkStatus();
  }

  absl::Status Operator(std::string* open) {
    static constexpr std::string_view kLong[] = {"//", "**", "==", "!=", ">=", "<="};
    for (const std::string_view op : kLong) {
      if (At(pos_, op)) {
        Add(Tok::kOperator, std::string(op));
        pos_ += 2;
        return absl::OkStatus();
      }
    }
    const char c = s_[pos_];
    static constexpr std::string_view kSingle = "+-/*%~[](){}><=.:|,;";
    if (kSingle.find(c) == std::string_view::npos) return Error("unexpected character in a tag");
    if (c == '(' || c == '[' || c == '{') {
      *open += c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
      if (open->empty() || open->back() != c) return Error(std::string("unexpected '") + c + "'");
      open->pop_back();
    }
    Add(Tok::kOperator, std::string(1, c));
    ++pos_;
    return absl::OkStatus();
  }

  std::string s_;
  size_t pos_ = 0;
  size_t counted_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

absl::Status SyntaxError(int line, std::string_view message) {
  return MakeError(absl::StatusCode::kInvalidArgument, "CHAT_TEMPLATE_SYNTAX",
                   absl::StrCat("chat template: line ", line, ": ", std::string(message)),
                   {{"line", std::to_string(line)}});
}

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) { return Lexer(NormalizeNewlines(source)).Run(); }

}  // namespace sage::jinja
