// The kernel's own name of an open file, compared with the folders.
#include "engine/base/read_roots.h"

#include <unistd.h>

#include <algorithm>
#include <climits>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

struct Roots {
  std::mutex mutex;
  std::vector<std::string> folders;
};
Roots& TheRoots() {
  static auto* const roots = new Roots;
  return *roots;
}

}  // namespace

bool IsBelow(std::string_view path, std::string_view folder) {
  return path == folder || (path.size() > folder.size() && path.substr(0, folder.size()) == folder &&
                            (folder == "/" || path[folder.size()] == '/'));
}

void ConfineReads(const std::vector<std::string>& folders) {
  Roots& roots = TheRoots();
  std::lock_guard<std::mutex> lock(roots.mutex);
  for (const std::string& folder : folders) {
    if (std::find(roots.folders.begin(), roots.folders.end(), folder) == roots.folders.end()) {
      roots.folders.push_back(folder);
    }
  }
}

absl::Status CheckConfined(const std::string& path, int fd) {
  Roots& roots = TheRoots();
  std::lock_guard<std::mutex> lock(roots.mutex);
  const auto inside = [&](std::string_view name) {
    return std::any_of(roots.folders.begin(), roots.folders.end(),
                       [&](const std::string& folder) { return IsBelow(name, folder); });
  };
  if (!inside(path)) return absl::OkStatus();
  char real[PATH_MAX];
  const ssize_t size = readlink(absl::StrCat("/proc/self/fd/", fd).c_str(), real, sizeof real);
  if (size > 0 && static_cast<size_t>(size) < sizeof real && inside({real, static_cast<size_t>(size)})) {
    return absl::OkStatus();
  }
  return MakeError(absl::StatusCode::kPermissionDenied, "PATH_OUTSIDE_ROOTS",
                   absl::StrCat(path, ": must stay below the model roots and the data folder, a link leads out"));
}

}  // namespace sage
