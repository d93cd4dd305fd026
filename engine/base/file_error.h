// What the operating system said of a file, as a status: one mapping for everything that reads or writes.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace sage {

// `error` is an errno: NOT_FOUND (FILE_NOT_FOUND), PERMISSION_DENIED, RESOURCE_EXHAUSTED (NO_SPACE), else
// INTERNAL (FILE_ERROR). The message is "WHAT PATH: the system's words".
absl::Status FileError(int error, const std::string& what, const std::string& path);

}  // namespace sage
