// Control groups, version 2 and 1: the strictest limit from this process's group up to the root counts.
#include "server/host_limits.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace sage::server {
namespace {

// Version 1 says "no limit" with a number near 2^63.
constexpr int64_t kUnlimited = int64_t{1} << 60;

std::string Slurp(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

// The first number of a file; `missing` when there is none.
int64_t FirstNumber(const std::string& path, int64_t missing) {
  const std::vector<std::string> words = absl::StrSplit(Slurp(path), absl::ByAnyChar(" \n"), absl::SkipEmpty());
  int64_t out = 0;
  return !words.empty() && absl::SimpleAtoi(words[0], &out) ? out : missing;
}

// The group's path and every parent's, "/a/b", "/a", "".
std::vector<std::string> Upwards(std::string path) {
  std::vector<std::string> out;
  while (!path.empty() && path.back() == '/') path.pop_back();
  while (!path.empty()) {
    out.push_back(path);
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
  out.push_back("");
  return out;
}

void Strictest(double cpus, HostLimits& out) {
  if (cpus > 0 && (out.quota_cpus == 0 || cpus < out.quota_cpus)) out.quota_cpus = cpus;
}
void Strictest(int64_t bytes, HostLimits& out) {
  if (bytes > 0 && bytes < kUnlimited && (out.group_bytes == 0 || bytes < out.group_bytes)) out.group_bytes = bytes;
}

void ReadVersion2(const std::string& root, const std::string& group, HostLimits& out) {
  const std::string base = root + "/sys/fs/cgroup";
  out.group = "cgroup2 " + group;
  for (const std::string& each : Upwards(group)) {
    const std::vector<std::string> words =
        absl::StrSplit(Slurp(base + each + "/cpu.max"), absl::ByAnyChar(" \n"), absl::SkipEmpty());
    double quota = 0, period = 0;
    if (words.size() == 2 && absl::SimpleAtod(words[0], &quota) && absl::SimpleAtod(words[1], &period) && period > 0) {
      Strictest(quota / period, out);
    }
    Strictest(FirstNumber(base + each + "/memory.max", 0), out);
  }
}

void ReadVersion1(const std::string& root, const std::string& controller, const std::string& group, HostLimits& out) {
  const std::string base = root + "/sys/fs/cgroup/" + controller;
  out.group = "cgroup1 " + group;
  for (const std::string& each : Upwards(group)) {
    if (controller == "memory") {
      Strictest(FirstNumber(base + each + "/memory.limit_in_bytes", 0), out);
    } else {
      const int64_t quota = FirstNumber(base + each + "/cpu.cfs_quota_us", -1);
      const int64_t period = FirstNumber(base + each + "/cpu.cfs_period_us", -1);
      if (quota > 0 && period > 0) Strictest(static_cast<double>(quota) / static_cast<double>(period), out);
    }
  }
}

}  // namespace

int64_t HostLimits::memory_bytes() const {
  return group_bytes > 0 && (machine_bytes == 0 || group_bytes < machine_bytes) ? group_bytes : machine_bytes;
}

HostLimits ReadHostLimits(const std::string& root) {
  HostLimits out;
  out.group = "none";
  out.machine_cpus = static_cast<int>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
  out.machine_bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  cpu_set_t set;
  CPU_ZERO(&set);
  out.affinity_cpus = sched_getaffinity(0, sizeof(set), &set) == 0 ? std::max(1, CPU_COUNT(&set)) : out.machine_cpus;
  for (const auto& part : absl::StrSplit(Slurp(root + "/proc/self/cgroup"), '\n', absl::SkipEmpty())) {
    const std::vector<std::string> fields = absl::StrSplit(part, absl::MaxSplits(':', 2));  // id:controllers:path
    if (fields.size() != 3) continue;
    if (fields[1].empty()) {
      if (out.group == "none") ReadVersion2(root, fields[2], out);
      continue;
    }
    for (const auto& controller : absl::StrSplit(fields[1], ',')) {
      if (controller == "cpu" || controller == "memory") ReadVersion1(root, std::string(controller), fields[2], out);
    }
  }
  // A thread more than the quota would only be stopped in the middle of a step that the others wait for.
  const int by_quota = out.quota_cpus > 0 ? std::max(1, static_cast<int>(std::floor(out.quota_cpus + 0.5))) : 1 << 20;
  out.threads = std::max(1, std::min(out.affinity_cpus, by_quota));
  return out;
}

Json ToJson(const HostLimits& limits) {
  return {{"machine_cpus", limits.machine_cpus},
          {"affinity_cpus", limits.affinity_cpus},
          {"quota_cpus", limits.quota_cpus},
          {"threads", limits.threads},
          {"machine_bytes", limits.machine_bytes},
          {"group_memory_bytes", limits.group_bytes},
          {"group", limits.group}};
}

}  // namespace sage::server
