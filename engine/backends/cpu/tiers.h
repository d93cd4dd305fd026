// Which tiers this machine can run, best first.
#pragma once

#include <string>

#include "engine/backends/cpu/kernels/tier.h"
#include "engine/base/cpu_features.h"

namespace sage::cpu {

// The best tier of the host (or of SAGE_CPU_TIER).
const TierFns& HostTier();
// Empty when `cpu` can run the tier, else what is missing.
std::string RefuseTier(const std::string& tier, const CpuFeatures& cpu);

}  // namespace sage::cpu
