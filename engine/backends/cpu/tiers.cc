// Picks a tier by cpuid.
#include "engine/backends/cpu/tiers.h"

#include <vector>

namespace sage::cpu {

std::string RefuseTier(const std::string& tier, const CpuFeatures& cpu) {
  if (tier == "avx512" && !(cpu.avx512 && cpu.avx512_vnni)) return "needs AVX-512 F, BW, VL, DQ and VNNI";
  if (tier == "avx2" && !cpu.avx2) return "needs AVX2, FMA and F16C";
  return "";
}

const TierFns& HostTier() {
  static const TierFns* const tier = [] {
    const CpuFeatures& cpu = HostCpu();
    for (const TierFns* t : {&kAvx512Tier, &kAvx2Tier}) {
      if (RefuseTier(t->name, cpu).empty()) return t;
    }
    return &kGenericTier;
  }();
  return *tier;
}

}  // namespace sage::cpu
