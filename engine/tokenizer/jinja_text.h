// Python's text operations on UTF-8: code-point slicing, case, white space, splitting, number formatting.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sage::jinja {

bool IsSpace(int32_t code);  // str.isspace
size_t CountChars(std::string_view text);
// Byte offset of character `n` (text.size() past the end); text may be ill-formed: a bad byte is one character.
size_t CharOffset(std::string_view text, size_t n);

// Like text.find(part, from), but linear in the worst case too.
size_t FindText(std::string_view text, std::string_view part, size_t from = 0);

enum class Case { kUpper, kLower, kTitle, kCapitalize };
std::string ConvertCase(std::string_view text, Case to);

enum class CharClass { kAlpha, kDigit, kAlnum, kSpace, kUpper, kLower };
bool AllOfClass(std::string_view text, CharClass want);

// `chars`: the set of characters to strip; null strips white space.
std::string_view Strip(std::string_view text, const std::string_view* chars, bool left, bool right);
std::vector<std::string_view> SplitSpace(std::string_view text, int64_t max_split, bool from_right);
std::vector<std::string_view> SplitText(std::string_view text, std::string_view sep, int64_t max_split,
                                        bool from_right);
std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends);

std::string FloatRepr(double d);                              // repr(float)
std::string FormatFixed(double d, int precision, char kind);  // kind: f, e, g, %
std::string StringRepr(std::string_view text);
std::string EscapeHtml(std::string_view text);

}  // namespace sage::jinja
