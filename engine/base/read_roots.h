// Folders that reading must not leave, whatever links appear after a name was checked.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace sage {

// Whether `path` is `folder` or lies below it, by their letters.
bool IsBelow(std::string_view path, std::string_view folder);

// From now on a file whose path lies below one of `folders` (real paths) must lie below one of them once it is open:
// ReadFile and MappedFile ask the open file itself where it is, so a link that is put in place of a folder between the
// check of a name and its use leads nowhere. Links between the folders are allowed; paths elsewhere (credentials) are
// not looked at. For the whole process, as a daemon wants it; a later call adds its folders.
void ConfineReads(const std::vector<std::string>& folders);

// PERMISSION_DENIED (PATH_OUTSIDE_ROOTS) when `fd`, opened by `path`, lies outside.
absl::Status CheckConfined(const std::string& path, int fd);

}  // namespace sage
