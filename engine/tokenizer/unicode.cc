// UTF-8 decoding, Unicode classes and normal forms on utf8proc's tables.
#include "engine/tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <vector>

namespace sage {
namespace {

bool IsContinuation(uint8_t byte) { return (byte & 0xC0) == 0x80; }

// How many bytes of an ill-formed or incomplete sequence at `at` belong together; `cut` tells that the text ended
// inside a sequence that was well-formed so far.
size_t IllFormedLength(std::string_view text, size_t at, bool* cut) {
  *cut = false;
  const uint8_t first = static_cast<uint8_t>(text[at]);
  size_t need = 0;
  uint8_t low = 0x80, high = 0xBF;
  if (first >= 0xC2 && first <= 0xDF) {
    need = 1;
  } else if (first >= 0xE0 && first <= 0xEF) {
    need = 2;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
  } else if (first >= 0xF0 && first <= 0xF4) {
    need = 3;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
  } else {
    return 1;
  }
  size_t length = 1;
  for (; length <= need; ++length) {
    if (at + length >= text.size()) {
      *cut = true;
      return length;
    }
    const uint8_t byte = static_cast<uint8_t>(text[at + length]);
    if (byte < low || byte > high) return length;
    low = 0x80;
    high = 0xBF;
  }
  return length;
}

bool IsAscii(std::string_view text) {
  for (char c : text) {
    if (static_cast<uint8_t>(c) >= 0x80) return false;
  }
  return true;
}

utf8proc_category_t Category(int32_t code) { return utf8proc_category(code); }

void SortMarks(std::vector<int32_t>& codes) {
  size_t i = 0;
  while (i < codes.size()) {
    if (utf8proc_get_property(codes[i])->combining_class == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < codes.size() && utf8proc_get_property(codes[end])->combining_class != 0) ++end;
    std::stable_sort(codes.begin() + i, codes.begin() + end, [](int32_t a, int32_t b) {
      return utf8proc_get_property(a)->combining_class < utf8proc_get_property(b)->combining_class;
    });
    i = end;
  }
}

struct ByteAlphabet {
  std::array<std::string, 256> chars;
  std::array<int16_t, 512> bytes;
  ByteAlphabet() {
    bytes.fill(-1);
    int32_t next = 256;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174);
      const int32_t code = printable ? b : next++;
      AppendUtf8(chars[b], code);
      bytes[code] = static_cast<int16_t>(b);
    }
  }
};

const ByteAlphabet& Alphabet() {
  static const ByteAlphabet alphabet;
  return alphabet;
}

}  // namespace

Utf8Char DecodeUtf8(std::string_view text, size_t at) {
  if (at >= text.size()) return {};
  const uint8_t* p = reinterpret_cast<const uint8_t*>(text.data()) + at;
  const size_t left = text.size() - at;
  if (p[0] < 0x80) return {p[0], 1};
  if (p[0] >= 0xC2 && p[0] <= 0xDF && left >= 2 && IsContinuation(p[1]))
    return {((p[0] & 0x1F) << 6) | (p[1] & 0x3F), 2};
  if (p[0] >= 0xE0 && p[0] <= 0xEF && left >= 3 && IsContinuation(p[1]) && IsContinuation(p[2])) {
    const int32_t code = ((p[0] & 0x0F) << 12) | ((p[1] & 0x3F) << 6) | (p[2] & 0x3F);
    if (code >= 0x800 && (code < 0xD800 || code > 0xDFFF)) return {code, 3};
  }
  if (p[0] >= 0xF0 && p[0] <= 0xF4 && left >= 4 && IsContinuation(p[1]) && IsContinuation(p[2]) &&
      IsContinuation(p[3])) {
    const int32_t code = ((p[0] & 0x07) << 18) | ((p[1] & 0x3F) << 12) | ((p[2] & 0x3F) << 6) | (p[3] & 0x3F);
    if (code >= 0x10000 && code <= 0x10FFFF) return {code, 4};
  }
  return {};
}

void AppendUtf8(std::string& out, int32_t code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | (code >> 6));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | (code >> 12));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | (code >> 18));
    out += static_cast<char>(0x80 | ((code >> 12) & 0x3F));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  }
}

bool IsValidUtf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = DecodeUtf8(text, at);
    if (c.code < 0) return false;
    at += c.size;
  }
  return true;
}

std::string LossyUtf8(std::string_view bytes, size_t* incomplete) {
  if (incomplete != nullptr) *incomplete = 0;
  std::string out;
  out.reserve(bytes.size());
  for (size_t at = 0; at < bytes.size();) {
    const Utf8Char c = DecodeUtf8(bytes, at);
    if (c.code >= 0) {
      out.append(bytes.substr(at, c.size));
      at += c.size;
      continue;
    }
    bool cut = false;
    const size_t length = IllFormedLength(bytes, at, &cut);
    if (cut && incomplete != nullptr) {
      *incomplete = length;
      break;
    }
    out += "\xEF\xBF\xBD";
    at += length;
  }
  return out;
}

bool IsWhitespace(int32_t code) {
  return (code >= 9 && code <= 13) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
         code == 0x3000;
}

bool IsNumeric(int32_t code) {
  const utf8proc_category_t c = Category(code);
  return c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO;
}

bool IsWordCharacter(int32_t code) {
  if (code < 0x80) {
    return (code >= '0' && code <= '9') || (code >= 'a' && code <= 'z') || (code >= 'A' && code <= 'Z') || code == '_';
  }
  const utf8proc_category_t c = Category(code);
  if (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_NL) return true;  // L*, M*, Nd, Nl lie side by side
  if (c == UTF8PROC_CATEGORY_PC || code == 0x200C || code == 0x200D) return true;
  // Circled and squared Latin letters are alphabetic symbols.
  return (code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) ||
         (code >= 0x1F150 && code <= 0x1F169) || (code >= 0x1F170 && code <= 0x1F189);
}

bool IsPunctuation(int32_t code) {
  if (code < 0x80) {
    return (code >= 33 && code <= 47) || (code >= 58 && code <= 64) || (code >= 91 && code <= 96) ||
           (code >= 123 && code <= 126);
  }
  const utf8proc_category_t c = Category(code);
  return c >= UTF8PROC_CATEGORY_PC && c <= UTF8PROC_CATEGORY_PO;
}

bool IsMark(int32_t code) {
  const utf8proc_category_t c = Category(code);
  return c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_MC || c == UTF8PROC_CATEGORY_ME;
}

bool IsNonspacingMark(int32_t code) { return Category(code) == UTF8PROC_CATEGORY_MN; }

bool IsOther(int32_t code) {
  const utf8proc_category_t c = Category(code);
  // Unassigned characters stay, and so do format characters younger than the reference's tables.
  const bool young = code == 0x890 || code == 0x891 || code == 0x8E2 || code == 0x110CD ||
                     (code >= 0x13430 && code <= 0x1343F);
  return c == UTF8PROC_CATEGORY_CC || c == UTF8PROC_CATEGORY_CO || (c == UTF8PROC_CATEGORY_CF && !young);
}

bool IsChineseCharacter(int32_t code) {
  return (code >= 0x4E00 && code <= 0x9FFF) || (code >= 0x3400 && code <= 0x4DBF) ||
         (code >= 0x20000 && code <= 0x2A6DF) || (code >= 0x2A700 && code <= 0x2B73F) ||
         (code >= 0x2B740 && code <= 0x2B81F) || (code >= 0x2B920 && code <= 0x2CEAF) ||
         (code >= 0xF900 && code <= 0xFAFF) || (code >= 0x2F800 && code <= 0x2FA1F);
}

std::string NormalizeUnicode(std::string_view text, UnicodeForm form) {
  if (IsAscii(text)) return std::string(text);
  const bool compose = form == UnicodeForm::kNfc || form == UnicodeForm::kNfkc;
  const bool compat = form == UnicodeForm::kNfkc || form == UnicodeForm::kNfkd;
  // The library's own utf8proc_map sorts marks by neighbour swaps, which is quadratic on hostile text.
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0));
  std::vector<int32_t> codes;
  codes.reserve(text.size());
  int32_t buffer[64];
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = DecodeUtf8(text, at);
    at += c.size;
    const auto count = utf8proc_decompose_char(c.code, buffer, 64, options, nullptr);
    if (count < 0 || count > 64) {
      codes.push_back(c.code < 0 ? 0xFFFD : c.code);
      continue;
    }
    codes.insert(codes.end(), buffer, buffer + count);
  }
  SortMarks(codes);
  auto count = static_cast<utf8proc_ssize_t>(codes.size());
  if (compose) {
    count = utf8proc_normalize_utf32(codes.data(), count,
                                     static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  }
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < count; ++i) AppendUtf8(out, codes[i]);
  return out;
}

std::string LowercaseUnicode(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = DecodeUtf8(text, at);
    at += c.size;
    if (c.code == 0x130) {
      out += "i\xCC\x87";  // the one character whose lower case is two
    } else {
      AppendUtf8(out, c.code < 0 ? 0xFFFD : utf8proc_tolower(c.code));
    }
  }
  return out;
}

size_t GraphemeLength(std::string_view text, size_t at) {
  Utf8Char previous = DecodeUtf8(text, at);
  size_t length = previous.size;
  utf8proc_int32_t state = 0;
  while (at + length < text.size()) {
    const Utf8Char next = DecodeUtf8(text, at + length);
    if (previous.code < 0 || next.code < 0) break;
    if (utf8proc_grapheme_break_stateful(previous.code, next.code, &state)) break;
    length += next.size;
    previous = next;
  }
  return length;
}

const std::string& ByteLevelChar(uint8_t byte) { return Alphabet().chars[byte]; }

int ByteLevelByte(int32_t code) { return code >= 0 && code < 512 ? Alphabet().bytes[code] : -1; }

std::string ByteLevelEncode(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (char c : bytes) out += ByteLevelChar(static_cast<uint8_t>(c));
  return out;
}

std::string ByteLevelDecode(std::string_view token) {
  std::string out;
  out.reserve(token.size());
  for (size_t at = 0; at < token.size();) {
    const Utf8Char c = DecodeUtf8(token, at);
    const int byte = ByteLevelByte(c.code);
    if (byte < 0) return std::string(token);
    out += static_cast<char>(byte);
    at += c.size;
  }
  return out;
}

}  // namespace sage
