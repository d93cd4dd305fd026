// What the processor offers, asked once by cpuid; kernels are picked by it at run time, never at compile time.
#pragma once

#include <string>

namespace sage {

struct CpuFeatures {
  bool avx2 = false;    // AVX2, FMA and F16C together
  bool avx512 = false;  // F, BW, VL, DQ together
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
  bool avx_vnni = false;
  std::string name;  // brand string
};

// SAGE_CPU_TIER=generic|avx2|avx512 in the environment lowers the answer (tests run every tier the machine has); it
// never raises it.
const CpuFeatures& HostCpu();
// The same detection without the environment.
CpuFeatures DetectCpu();
// `features` cut down to a tier name; used by tests that run all tiers in one process.
CpuFeatures LimitTier(CpuFeatures features, const std::string& tier);

}  // namespace sage
