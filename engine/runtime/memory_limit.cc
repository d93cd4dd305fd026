// Reads /proc/meminfo and the version 2 control group of this process.
#include "engine/runtime/memory_limit.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace sage {
namespace {

std::string Slurp(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

// The number after `key` in a text of "key value" lines; -1 when absent ("max" too).
int64_t NumberAfter(const std::string& text, const std::string& key) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.compare(0, key.size(), key) != 0) continue;
    std::istringstream value(line.substr(key.size()));
    int64_t out = -1;
    return value >> out ? out : -1;
  }
  return -1;
}

// What one group leaves; -1 without a limit.
int64_t LeftIn(const std::string& folder) {
  const std::string limit = Slurp(folder + "/memory.max");
  if (limit.empty() || std::isdigit(static_cast<unsigned char>(limit[0])) == 0) return -1;
  const int64_t most = std::strtoll(limit.c_str(), nullptr, 10);
  const int64_t used = std::strtoll(Slurp(folder + "/memory.current").c_str(), nullptr, 10);
  // Clean pages of files are given up when memory runs short.
  const int64_t files = std::max<int64_t>(0, NumberAfter(Slurp(folder + "/memory.stat"), "inactive_file"));
  return std::max<int64_t>(0, most - used + files);
}

// The least that this process's group or one above it leaves (a service's limit stands on its own group, a container
// sees its group as the root).
int64_t GroupAvailable() {
  const std::string line = Slurp("/proc/self/cgroup");
  const size_t begin = line.find("0::/");
  std::string group = begin == std::string::npos ? "" : line.substr(begin + 3, line.find('\n', begin) - begin - 3);
  int64_t least = -1;
  while (true) {
    while (!group.empty() && group.back() == '/') group.pop_back();
    const int64_t left = LeftIn("/sys/fs/cgroup" + group);
    if (left >= 0) least = least < 0 ? left : std::min(least, left);
    if (group.empty()) return least;
    group.resize(group.rfind('/') == std::string::npos ? 0 : group.rfind('/'));
  }
}

}  // namespace

int64_t ParseMemAvailable(std::string_view meminfo) {
  const int64_t kib = NumberAfter(std::string(meminfo), "MemAvailable:");
  return kib < 0 ? -1 : kib * 1024;
}

int64_t AvailableMemory() {
  const int64_t machine = ParseMemAvailable(Slurp("/proc/meminfo"));
  const int64_t group = GroupAvailable();
  if (machine < 0 || group < 0) return std::max(machine, group);
  return std::min(machine, group);
}

}  // namespace sage
