// What this process may use: CPUs by affinity and by the control group's quota, memory by the control group's limit.
#pragma once

#include <cstdint>
#include <string>

#include "engine/base/json.h"

namespace sage::server {

struct HostLimits {
  int machine_cpus = 0;       // online
  int affinity_cpus = 0;      // of those, the ones this process may run on
  double quota_cpus = 0;      // CPU time a second the control group allows; 0 = no quota
  int threads = 1;            // what follows: compute threads that do not throttle one another
  int64_t machine_bytes = 0;  // physical memory
  int64_t group_bytes = 0;    // the control group's memory limit; 0 = none
  std::string group;          // "cgroup2 /path", "cgroup1 /path" or "none"
  // The smaller of the two.
  int64_t memory_bytes() const;
};

// Reads below `root` ("" = the machine's own /proc and /sys; tests give a folder that mimics them).
HostLimits ReadHostLimits(const std::string& root = "");
Json ToJson(const HostLimits& limits);

}  // namespace sage::server
