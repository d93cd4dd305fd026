// Text for people from bytes that may be a piece of a character.
#pragma once

#include <string>
#include <string_view>

namespace sage {

// Each byte that is part of no UTF-8 character becomes U+FFFD.
std::string ReplaceInvalidUtf8(std::string_view bytes);

}  // namespace sage
