// Patterns of module names, as users write them.
#pragma once

#include <string_view>

namespace sage {

// "*" matches any run of characters (dots too), "?" one; the whole name must match.
bool GlobMatch(std::string_view pattern, std::string_view name);

}  // namespace sage
