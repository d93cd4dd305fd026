// UTF-8 and the Unicode character classes that tokenizer files are defined in terms of.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace sage {

// One decoded character: its code point and how many bytes it took. Invalid bytes give code -1, size 1.
struct Utf8Char {
  int32_t code = -1;
  uint32_t size = 1;
};

Utf8Char DecodeUtf8(std::string_view text, size_t at);
void AppendUtf8(std::string& out, int32_t code);
bool IsValidUtf8(std::string_view text);

// Every maximal ill-formed part becomes one U+FFFD (the WHATWG and Rust rule). With `incomplete` set, a character that
// the end of `bytes` cuts off is left out and its length stored there.
std::string LossyUtf8(std::string_view bytes, size_t* incomplete = nullptr);

bool IsWhitespace(int32_t code);        // White_Space
bool IsNumeric(int32_t code);           // Nd, Nl, No
bool IsWordCharacter(int32_t code);     // \w: alphabetic, marks, decimal digits, connectors, joiners
bool IsPunctuation(int32_t code);       // P*, and the ASCII symbols
bool IsMark(int32_t code);              // Mn, Mc, Me
bool IsNonspacingMark(int32_t code);    // Mn
bool IsOther(int32_t code);             // Cc, Cf, Co
bool IsChineseCharacter(int32_t code);  // BERT's CJK ranges

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };

// Unicode normalization in linear time (a run of combining marks is sorted once). `text` is valid UTF-8.
std::string NormalizeUnicode(std::string_view text, UnicodeForm form);
// Full lower-case mapping of each character on its own.
std::string LowercaseUnicode(std::string_view text);

// Length of the extended grapheme cluster that begins at `at`.
size_t GraphemeLength(std::string_view text, size_t at);

// GPT-2's printable alphabet for the 256 bytes.
const std::string& ByteLevelChar(uint8_t byte);
// The byte a code point of that alphabet stands for, or -1.
int ByteLevelByte(int32_t code);
std::string ByteLevelEncode(std::string_view bytes);
// The bytes of a token; a token with any other character stands for its own bytes.
std::string ByteLevelDecode(std::string_view token);

}  // namespace sage
