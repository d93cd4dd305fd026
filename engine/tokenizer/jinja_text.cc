// Python's text operations on UTF-8.
#include "engine/tokenizer/jinja_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "engine/tokenizer/unicode.h"

namespace sage::jinja {
namespace {

utf8proc_category_t Category(int32_t code) { return code < 0 ? UTF8PROC_CATEGORY_CN : utf8proc_category(code); }

bool IsLetter(int32_t code) {
  const auto c = Category(code);
  return c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
}

bool IsCased(int32_t code) {
  const auto c = Category(code);
  return c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LL || c == UTF8PROC_CATEGORY_LT;
}

bool IsDigitChar(int32_t code) {
  return Category(code) == UTF8PROC_CATEGORY_ND || code == 0xB2 || code == 0xB3 || code == 0xB9 || code == 0x2070 ||
         (code >= 0x2074 && code <= 0x2079) || (code >= 0x2080 && code <= 0x2089);
}

// Characters whose upper case is longer than one character.
struct LongUpper {
  int32_t code;
  const char* upper;
  const char* title;
};
constexpr LongUpper kLongUpper[] = {
    {0xDF, "SS", "Ss"},   {0x149, "\u02BCN", "\u02BCN"}, {0x1F0, "J\u030C", "J\u030C"}, {0xFB00, "FF", "Ff"},
    {0xFB01, "FI", "Fi"}, {0xFB02, "FL", "Fl"},          {0xFB03, "FFI", "Ffi"},        {0xFB04, "FFL", "Ffl"},
    {0xFB05, "ST", "St"}, {0xFB06, "ST", "St"}};

void AppendUpper(std::string& out, int32_t code, bool title) {
  for (const LongUpper& entry : kLongUpper) {
    if (entry.code == code) {
      out += title ? entry.title : entry.upper;
      return;
    }
  }
  AppendUtf8(out, title ? utf8proc_totitle(code) : utf8proc_toupper(code));
}

// The capital sigma at the end of a word has its own lower-case letter.
bool FinalSigma(std::string_view text, size_t at, bool after_cased) {
  if (!after_cased) return false;
  const size_t next = at + DecodeUtf8(text, at).size;
  return next >= text.size() || !IsCased(DecodeUtf8(text, next).code);
}

bool IsLineBreak(int32_t code) {
  return (code >= 0x0A && code <= 0x0D) || (code >= 0x1C && code <= 0x1E) || code == 0x85 || code == 0x2028 ||
         code == 0x2029;
}

bool InSet(std::string_view set, std::string_view c) {
  for (size_t at = 0; at < set.size();) {
    const size_t size = DecodeUtf8(set, at).size;
    if (set.substr(at, size) == c) return true;
    at += size;
  }
  return false;
}

// The character that ends at `end`.
size_t CharBefore(std::string_view text, size_t end) {
  for (size_t back = 1; back <= 4 && back <= end; ++back) {
    const Utf8Char c = DecodeUtf8(text, end - back);
    if (c.code >= 0 && c.size == back) return end - back;
  }
  return end - 1;
}

bool Printable(int32_t code) {
  switch (Category(code)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return code == ' ';
    default:
      return true;
  }
}

}  // namespace

bool IsSpace(int32_t code) { return (code >= 0x1C && code <= 0x1F) || (code >= 0 && IsWhitespace(code)); }

size_t CountChars(std::string_view text) {
  size_t ascii = 0;
  while (ascii < text.size() && static_cast<unsigned char>(text[ascii]) < 0x80) ++ascii;
  size_t count = ascii;
  for (size_t at = ascii; at < text.size(); ++count) at += DecodeUtf8(text, at).size;
  return count;
}

size_t CharOffset(std::string_view text, size_t n) {
  size_t at = 0;
  for (; n > 0 && at < text.size(); --n) at += DecodeUtf8(text, at).size;
  return at;
}

size_t FindText(std::string_view text, std::string_view part, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  if (part.empty()) return from;
  const void* at = memmem(text.data() + from, text.size() - from, part.data(), part.size());
  return at == nullptr ? std::string_view::npos : static_cast<size_t>(static_cast<const char*>(at) - text.data());
}

std::string ConvertCase(std::string_view text, Case to) {
  std::string out;
  out.reserve(text.size());
  bool after_cased = false;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = DecodeUtf8(text, at);
    const bool raise =
        to == Case::kUpper || (to == Case::kTitle && !after_cased) || (to == Case::kCapitalize && at == 0);
    if (c.code < 0) {
      out.append(text.substr(at, c.size));
    } else if (c.code < 0x80) {
      const char ch = text[at];
      const bool upper = ch >= 'A' && ch <= 'Z';
      const bool lower = ch >= 'a' && ch <= 'z';
      out += raise ? (lower ? static_cast<char>(ch - 32) : ch) : (upper ? static_cast<char>(ch + 32) : ch);
    } else if (raise) {
      AppendUpper(out, c.code, to != Case::kUpper);
    } else if (c.code == 0x3A3 && FinalSigma(text, at, after_cased)) {
      AppendUtf8(out, 0x3C2);
    } else if (c.code == 0x130) {
      out += "i\u0307";
    } else {
      AppendUtf8(out, utf8proc_tolower(c.code));
    }
    after_cased = IsCased(c.code);
    at += c.size;
  }
  return out;
}

bool AllOfClass(std::string_view text, CharClass want) {
  bool any_cased = false;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = DecodeUtf8(text, at);
    const auto category = Category(c.code);
    bool ok = true;
    switch (want) {
      case CharClass::kAlpha:
        ok = IsLetter(c.code);
        break;
      case CharClass::kDigit:
        ok = IsDigitChar(c.code);
        break;
      case CharClass::kAlnum:
        ok = IsLetter(c.code) || (c.code >= 0 && IsNumeric(c.code));
        break;
      case CharClass::kSpace:
        ok = IsSpace(c.code);
        break;
      case CharClass::kUpper:
        ok = category != UTF8PROC_CATEGORY_LL && category != UTF8PROC_CATEGORY_LT;
        any_cased = any_cased || category == UTF8PROC_CATEGORY_LU;
        break;
      case CharClass::kLower:
        ok = category != UTF8PROC_CATEGORY_LU && category != UTF8PROC_CATEGORY_LT;
        any_cased = any_cased || category == UTF8PROC_CATEGORY_LL;
        break;
    }
    if (!ok) return false;
    at += c.size;
  }
  return want == CharClass::kUpper || want == CharClass::kLower ? any_cased : !text.empty();
}

std::string_view Strip(std::string_view text, const std::string_view* chars, bool left, bool right) {
  const auto strippable = [&](size_t at, size_t size) {
    return chars == nullptr ? IsSpace(DecodeUtf8(text, at).code) : InSet(*chars, text.substr(at, size));
  };
  size_t begin = 0;
  size_t end = text.size();
  while (left && begin < end) {
    const size_t size = DecodeUtf8(text, begin).size;
    if (!strippable(begin, size)) break;
    begin += size;
  }
  while (right && begin < end) {
    const size_t at = CharBefore(text, end);
    if (at < begin || !strippable(at, end - at)) break;
    end = at;
  }
  return text.substr(begin, end - begin);
}

std::vector<std::string_view> SplitSpace(std::string_view text, int64_t max_split, bool from_right) {
  std::vector<std::string_view> out;
  text = Strip(text, nullptr, !from_right, from_right);
  while (true) {
    text = Strip(text, nullptr, !from_right, from_right);
    if (text.empty()) break;
    if (max_split >= 0 && static_cast<int64_t>(out.size()) >= max_split) {
      out.push_back(text);
      break;
    }
    size_t at = from_right ? text.size() : 0;
    if (from_right) {
      while (at > 0) {
        const size_t before = CharBefore(text, at);
        if (IsSpace(DecodeUtf8(text, before).code)) break;
        at = before;
      }
      out.push_back(text.substr(at));
      text = text.substr(0, at);
    } else {
      while (at < text.size()) {
        const Utf8Char c = DecodeUtf8(text, at);
        if (IsSpace(c.code)) break;
        at += c.size;
      }
      out.push_back(text.substr(0, at));
      text = text.substr(at);
    }
  }
  if (from_right) std::reverse(out.begin(), out.end());
  return out;
}

std::vector<std::string_view> SplitText(std::string_view text, std::string_view sep, int64_t max_split,
                                        bool from_right) {
  std::vector<std::string_view> out;
  while (max_split < 0 || static_cast<int64_t>(out.size()) < max_split) {
    const size_t at = from_right ? text.rfind(sep) : FindText(text, sep);
    if (at == std::string_view::npos) break;
    out.push_back(from_right ? text.substr(at + sep.size()) : text.substr(0, at));
    text = from_right ? text.substr(0, at) : text.substr(at + sep.size());
  }
  out.push_back(text);
  if (from_right) std::reverse(out.begin(), out.end());
  return out;
}

std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> out;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = DecodeUtf8(text, at);
    size_t next = at + c.size;
    if (IsLineBreak(c.code)) {
      if (c.code == '\r' && next < text.size() && text[next] == '\n') ++next;
      out.push_back(text.substr(begin, (keep_ends ? next : at) - begin));
      begin = next;
    }
    at = next;
  }
  if (begin < text.size()) out.push_back(text.substr(begin));
  return out;
}

std::string FloatRepr(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), d, std::chars_format::scientific);
  std::string text(buffer, result.ptr);
  const size_t e = text.find('e');
  const int exponent = std::atoi(text.c_str() + e + 1);
  if (exponent < -4 || exponent >= 16) return text;
  const std::string sign = text[0] == '-' ? "-" : "";
  std::string digits;
  for (size_t i = sign.size(); i < e; ++i) {
    if (text[i] != '.') digits += text[i];
  }
  if (exponent < 0) return sign + "0." + std::string(-exponent - 1, '0') + digits;
  const size_t whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string FormatFixed(double d, int precision, char kind) {
  precision = std::clamp(precision, 0, 500);
  const bool percent = kind == '%';
  const char format[] = {'%', '.', '*', percent ? 'f' : kind, 0};
  if (percent) d *= 100;
  std::string out(1024, 0);
  int size = std::snprintf(out.data(), out.size(), format, precision, d);
  if (size < 0) return "";
  out.resize(std::min<size_t>(size, out.size() - 1));
  return percent ? out + "%" : out;
}

std::string StringRepr(std::string_view text) {
  const bool single = text.find('\'') == std::string_view::npos || text.find('"') != std::string_view::npos;
  const char quote = single ? '\'' : '"';
  std::string out(1, quote);
  char buffer[16];
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = DecodeUtf8(text, at);
    if (c.code == quote || c.code == '\\') {
      out += '\\';
      out += text[at];
    } else if (c.code == '\n' || c.code == '\r' || c.code == '\t') {
      out += c.code == '\n' ? "\\n" : c.code == '\r' ? "\\r" : "\\t";
    } else if (c.code < 0 || Printable(c.code)) {
      out.append(text.substr(at, c.size));
    } else {
      const char* format = c.code < 0x100 ? "\\x%02x" : c.code < 0x10000 ? "\\u%04x" : "\\U%08x";
      std::snprintf(buffer, sizeof(buffer), format, static_cast<unsigned>(c.code));
      out += buffer;
    }
    at += c.size;
  }
  out += quote;
  return out;
}

std::string EscapeHtml(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

}  // namespace sage::jinja
