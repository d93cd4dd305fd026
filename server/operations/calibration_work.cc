// The engine names the folders by a hash of the specification; their progress says which output they were for.
#include "server/operations/calibration_work.h"

#include <filesystem>
#include <vector>

#include "engine/base/file.h"
#include "engine/base/json.h"

namespace sage::server {
namespace {

namespace fs = std::filesystem;
constexpr char kSuffix[] = ".progress.json";
constexpr size_t kMaxProgressBytes = size_t{64} << 20;

std::string OutputOf(const fs::path& progress) {
  const absl::StatusOr<std::string> text = ReadFile(progress.string(), kMaxProgressBytes);
  if (!text.ok()) return "";
  const absl::StatusOr<Json> json = ParseJson(*text, "progress");
  if (!json.ok() || !json->is_object()) return "";
  return JsonString(*json, "output", "").value_or("");
}

}  // namespace

void DiscardCalibration(const std::string& work_dir, const std::string& output) {
  std::vector<std::string> bases;
  std::error_code error;
  for (fs::directory_iterator it(work_dir, error), end; !error && it != end; it.increment(error)) {
    const std::string path = it->path().string();
    if (!path.ends_with(kSuffix)) continue;
    const std::string whose = OutputOf(it->path());
    if (whose == output || whose == output + ".staged")
      bases.push_back(path.substr(0, path.size() - sizeof kSuffix + 1));
  }
  std::error_code ignored;
  for (const std::string& base : bases) {
    for (const char* part : {"", kSuffix, ".lock"}) fs::remove_all(base + part, ignored);
  }
  fs::remove_all(output + ".staged", ignored);
}

}  // namespace sage::server
