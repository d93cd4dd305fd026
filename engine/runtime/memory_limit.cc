// Reads /proc/meminfo and the control groups of this process, version 2 and 1, and keeps the promises.
#include "engine/runtime/memory_limit.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>

#include "absl/base/const_init.h"
#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

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

// The files of one version's groups. Version 1 says "no limit" with a number near 2^63.
struct GroupFiles {
  const char* folder;
  const char* limit;
  const char* used;
  const char* inactive;  // in memory.stat: of this group and those below it, as the usage is
};
constexpr GroupFiles kVersion2 = {"", "/memory.max", "/memory.current", "inactive_file"};
constexpr GroupFiles kVersion1 = {"/memory", "/memory.limit_in_bytes", "/memory.usage_in_bytes", "total_inactive_file"};
constexpr int64_t kUnlimited = int64_t{1} << 60;

// What one group leaves; -1 without a limit.
int64_t LeftIn(const std::string& folder, const GroupFiles& files) {
  const std::string limit = Slurp(folder + files.limit);
  if (limit.empty() || std::isdigit(static_cast<unsigned char>(limit[0])) == 0) return -1;
  const int64_t most = std::strtoll(limit.c_str(), nullptr, 10);
  if (most >= kUnlimited) return -1;
  const int64_t used = std::strtoll(Slurp(folder + files.used).c_str(), nullptr, 10);
  // Clean pages of files are given up when memory runs short.
  const int64_t clean = std::max<int64_t>(0, NumberAfter(Slurp(folder + "/memory.stat"), files.inactive));
  return std::max<int64_t>(0, most - used + clean);
}

// The least that a group or one above it leaves (a service's limit stands on its own group, a container sees its group
// as the root).
int64_t LeastUpwards(const std::string& root, std::string group, const GroupFiles& files) {
  int64_t least = -1;
  while (true) {
    while (!group.empty() && group.back() == '/') group.pop_back();
    const int64_t left = LeftIn(root + "/sys/fs/cgroup" + files.folder + group, files);
    if (left >= 0) least = least < 0 ? left : std::min(least, left);
    if (group.empty()) return least;
    group.resize(group.rfind('/') == std::string::npos ? 0 : group.rfind('/'));
  }
}

// The smaller of two figures of which -1 says nothing.
int64_t Lesser(int64_t a, int64_t b) { return a < 0 || b < 0 ? std::max(a, b) : std::min(a, b); }

// Lines of /proc/self/cgroup are "id:controllers:path", version 2 has no controllers. Where both are mounted the memory
// controller is in one of them.
int64_t GroupAvailable(const std::string& root) {
  int64_t least = -1;
  std::istringstream lines(Slurp(root + "/proc/self/cgroup"));
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string group = line.substr(second + 1);
    if (controllers == ",,") least = Lesser(least, LeastUpwards(root, group, kVersion2));
    if (controllers.find(",memory,") != std::string::npos) least = Lesser(least, LeastUpwards(root, group, kVersion1));
  }
  return least;
}

// Bytes of a part that no page of the machine stands behind yet; all of them where the system does not say.
int64_t NotResident(absl::Span<const uint8_t> part) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  constexpr uintptr_t kPagesAtOnce = 1 << 16;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(part.data()) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(part.data()) + part.size();
  std::vector<unsigned char> resident(kPagesAtOnce);
  int64_t absent = 0;
  for (uintptr_t at = begin; at < end; at += kPagesAtOnce * page) {
    const size_t bytes = std::min<uintptr_t>(end - at, kPagesAtOnce * page);
    if (mincore(reinterpret_cast<void*>(at), bytes, resident.data()) != 0) return static_cast<int64_t>(part.size());
    const auto pages = static_cast<std::ptrdiff_t>((bytes + page - 1) / page);
    absent += std::count_if(resident.begin(), resident.begin() + pages, [](unsigned char r) { return (r & 1) == 0; });
  }
  return std::min(static_cast<int64_t>(part.size()), absent * static_cast<int64_t>(page));
}

ABSL_CONST_INIT absl::Mutex promises_lock(absl::kConstInit);
std::set<const MemoryPromise*>& Promises() ABSL_EXCLUSIVE_LOCKS_REQUIRED(promises_lock) {
  static auto* const all = new std::set<const MemoryPromise*>;  // never destroyed: engines may outlive static objects
  return *all;
}

}  // namespace

int64_t ParseMemAvailable(std::string_view meminfo) {
  const int64_t kib = NumberAfter(std::string(meminfo), "MemAvailable:");
  return kib < 0 ? -1 : kib * 1024;
}

int64_t SystemMemory(const std::string& root) {
  return Lesser(ParseMemAvailable(Slurp(root + "/proc/meminfo")), GroupAvailable(root));
}

int64_t MemoryPromise::AvailableLocked() {
  promises_lock.AssertHeld();
  const int64_t system = SystemMemory();
  if (system < 0) return system;
  int64_t promised = 0;
  for (const MemoryPromise* promise : Promises()) promised += promise->Untouched();
  return std::max<int64_t>(0, system - promised);
}

int64_t AvailableMemory() {
  const absl::MutexLock lock(&promises_lock);
  return MemoryPromise::AvailableLocked();
}

std::unique_ptr<MemoryPromise> MemoryPromise::Take(int64_t needed, int64_t kept, int64_t* available) {
  const absl::MutexLock lock(&promises_lock);
  *available = AvailableLocked();
  if (*available >= 0 && needed > *available) return nullptr;
  std::unique_ptr<MemoryPromise> out(new MemoryPromise(kept));
  Promises().insert(out.get());
  return out;
}

MemoryPromise::~MemoryPromise() {
  const absl::MutexLock lock(&promises_lock);
  Promises().erase(this);
}

void MemoryPromise::LiesAt(std::vector<absl::Span<const uint8_t>> parts) {
  const absl::MutexLock lock(&promises_lock);
  parts_ = std::move(parts);
}

int64_t MemoryPromise::Untouched() const {
  if (parts_.empty()) return bytes_;
  int64_t out = 0;
  for (const absl::Span<const uint8_t> part : parts_) out += NotResident(part);
  return out;
}

}  // namespace sage
