// PCRE2 with JIT behind the Regex class, and the translation from Oniguruma's dialect.
#include "engine/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/unicode.h"

namespace sage {
namespace {

constexpr uint32_t kMinMatchLimit = 10'000'000;
constexpr uint32_t kHeapLimitKib = 256 * 1024;
constexpr size_t kMaxPatternBytes = 64 * 1024;

// Oniguruma's Unicode classes, written out: PCRE2's \s has U+180E and its \w lacks marks, letter
// numbers and what else Oniguruma counts as a word character.
constexpr const char* kSpace =
    "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";
constexpr const char* kWord =
    "\\p{L}\\p{M}\\p{Nd}\\p{Pc}\\p{Nl}\\x{24b6}-\\x{24e9}"
    "\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}";
constexpr const char* kWordAlone = "\\xb2\\xb3\\xb9\\xbc-\\xbe";  // word characters too, but not inside a class
constexpr const char* kHex = "0-9a-fA-F";

// Rewrites one pattern. Beside classes, `{n,m}+` differs: Ruby repeats the counted atom, PCRE2 makes it possessive.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  std::string Run() {
    while (at_ < in_.size()) Step();
    return std::move(out_);
  }

 private:
  void Step() {
    const char c = in_[at_];
    if (c == '\\') return Escape();
    if (in_class_ > 0) {
      if (c == '[') ++in_class_;
      if (c == ']' && out_.size() != class_body_) --in_class_;
      Copy(1);
      return;
    }
    if (c == '[') {
      atom_ = out_.size();
      in_class_ = 1;
      Copy(at_ + 1 < in_.size() && in_[at_ + 1] == '^' ? 2 : 1);
      class_body_ = out_.size();
    } else if (c == '(') {
      groups_.push_back(out_.size());
      Copy(1);
    } else if (c == ')') {
      if (!groups_.empty()) {
        atom_ = groups_.back();
        groups_.pop_back();
      }
      Copy(1);
    } else if (c == '{') {
      Counted();
    } else {
      if (c != '?' && c != '*' && c != '+') atom_ = out_.size();
      Copy(1);
      while (at_ < in_.size() && (static_cast<uint8_t>(in_[at_]) & 0xC0) == 0x80) Copy(1);
    }
  }

  void Counted() {
    size_t end = at_ + 1;
    while (end < in_.size() && ((in_[end] >= '0' && in_[end] <= '9') || in_[end] == ',')) ++end;
    if (end >= in_.size() || in_[end] != '}' || end == at_ + 1) {
      atom_ = out_.size();
      Copy(1);
      return;
    }
    const bool repeated = end + 1 < in_.size() && in_[end + 1] == '+';
    if (repeated) out_.insert(atom_, "(?:");
    if (in_[at_ + 1] == ',') {  // {,m} counts from zero
      out_ += "{0";
      ++at_;
    }
    Copy(end + 1 - at_);
    if (repeated) out_ += ')';
  }

  void Escape() {
    if (in_class_ == 0) atom_ = out_.size();
    const char next = at_ + 1 < in_.size() ? in_[at_ + 1] : '\0';
    const char* body = nullptr;
    if (next == 's' || next == 'S') body = kSpace;
    if (next == 'w' || next == 'W') body = kWord;
    if (next == 'h' || next == 'H') body = kHex;
    const bool negated = next == 'S' || next == 'W' || next == 'H';
    if (body == nullptr || (negated && in_class_ > 0)) {
      Copy(2);
      if (next == 'p' || next == 'P' || next == 'x') {
        if (at_ < in_.size() && in_[at_] == '{') {
          while (at_ < in_.size() && in_[at_] != '}') Copy(1);
          Copy(1);
        }
      }
      return;
    }
    if (in_class_ > 0) {
      out_ += body;
    } else {
      out_ += negated ? "[^" : "[";
      out_ += body;
      if (body == kWord) out_ += kWordAlone;
      out_ += ']';
    }
    at_ += 2;
  }

  void Copy(size_t count) {
    count = std::min(count, in_.size() - at_);
    out_.append(in_.substr(at_, count));
    at_ += count;
  }

  std::string_view in_;
  std::string out_;
  size_t at_ = 0;
  size_t atom_ = 0;        // where the last atom begins in out_
  size_t class_body_ = 0;  // a `]` right here is a literal
  int in_class_ = 0;
  std::vector<size_t> groups_;
};

// What one thread needs to run matches.
struct Scratch {
  pcre2_match_data* data = pcre2_match_data_create(4, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 * 1024, 16 * 1024 * 1024, nullptr);
  Scratch() {
    if (context == nullptr) return;
    pcre2_set_heap_limit(context, kHeapLimitKib);
    if (stack != nullptr) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~Scratch() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

Scratch& ThreadScratch() {
  static thread_local Scratch scratch;
  return scratch;
}

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

Regex::~Regex() = default;

absl::StatusOr<std::shared_ptr<const Regex>> Regex::Compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes || !IsValidUtf8(pattern)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "TOKENIZER_INVALID",
                     absl::StrCat("tokenizer regex: valid UTF-8 of at most ", kMaxPatternBytes, " bytes, got ",
                                  pattern.size(), " bytes"));
  }
  const std::string translated = Translator(pattern).Run();
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (code == nullptr) {
    PCRE2_UCHAR text[256] = {0};
    pcre2_get_error_message(error, text, sizeof(text));
    return MakeError(absl::StatusCode::kInvalidArgument, "TOKENIZER_INVALID",
                     absl::StrCat("tokenizer regex: ", reinterpret_cast<const char*>(text), " at offset ", offset,
                                  " of ", translated.substr(0, 200)));
  }
  std::shared_ptr<Regex> regex(new Regex());
  regex->code_ = std::make_unique<Code>();
  regex->code_->code = code;
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where there is no JIT, the interpreter gives the same answers
  return std::shared_ptr<const Regex>(std::move(regex));
}

absl::StatusOr<std::shared_ptr<const Regex>> Regex::CompileLiteral(std::string_view text) {
  if (text.empty()) return Compile("");
  std::shared_ptr<Regex> regex(new Regex());
  regex->literal_ = std::string(text);
  return std::shared_ptr<const Regex>(std::move(regex));
}

absl::Status Regex::FindAll(std::string_view text, std::vector<TextRange>& matches) const {
  if (literal_.empty()) return FindRegex(text, matches);
  for (size_t at = text.find(literal_); at != std::string_view::npos; at = text.find(literal_, at + literal_.size())) {
    matches.push_back({at, at + literal_.size()});
  }
  return absl::OkStatus();
}

absl::Status Regex::FindRegex(std::string_view text, std::vector<TextRange>& matches) const {
  Scratch& scratch = ThreadScratch();
  if (scratch.data == nullptr || scratch.context == nullptr) {
    return MakeError(absl::StatusCode::kResourceExhausted, "REGEX_LIMIT", "tokenizer regex: no memory for a match");
  }
  // A single match over a long run of blanks may step back once a byte, so the limit grows with the text.
  pcre2_set_match_limit(scratch.context, static_cast<uint32_t>(std::max<size_t>(kMinMatchLimit, text.size() * 4)));
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t at = 0;
  size_t last_end = std::string_view::npos;
  while (at <= text.size()) {
    int rc = pcre2_match(code_->code, subject, text.size(), at, PCRE2_NO_UTF_CHECK, scratch.data, scratch.context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(code_->code, subject, text.size(), at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, scratch.data,
                       scratch.context);
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      return MakeError(
          absl::StatusCode::kResourceExhausted, "REGEX_LIMIT",
          absl::StrCat("tokenizer regex: one match must stay under the step limit, PCRE2 error ", rc, " at byte ", at));
    }
    const PCRE2_SIZE* ovector = pcre2_get_ovector_pointer(scratch.data);
    const size_t begin = ovector[0], end = ovector[1];
    if (begin > end || end > text.size()) break;  // \K can move the start behind the end
    if (begin == end && begin == last_end) {
      if (at >= text.size()) break;
      at += DecodeUtf8(text, at).size;
      last_end = std::string_view::npos;
      continue;
    }
    matches.push_back({begin, end});
    at = end;
    last_end = end;
  }
  return absl::OkStatus();
}

}  // namespace sage
