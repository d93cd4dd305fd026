// cpuid through the compiler's builtins, which also check that the OS saves the vector state.
#include "engine/base/cpu_features.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace sage {

CpuFeatures DetectCpu() {
  CpuFeatures out;
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned a = 0, b = 0, c = 0, d = 0;
  // Not every compiler's __builtin_cpu_supports knows F16C: leaf 1, ECX bit 29.
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
  out.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
  out.avx512 = out.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  out.avx512_vnni = out.avx512 && __builtin_cpu_supports("avx512vnni");
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    out.avx512_bf16 = out.avx512 && (a & (1u << 5));
    out.avx_vnni = out.avx2 && (a & (1u << 4));
  }
  unsigned brand[12] = {};
  if (static_cast<unsigned>(__get_cpuid_max(0x80000000u, nullptr)) >= 0x80000004u) {
    for (unsigned i = 0; i < 3; ++i) {
      __get_cpuid(0x80000002u + i, &brand[4 * i], &brand[4 * i + 1], &brand[4 * i + 2], &brand[4 * i + 3]);
    }
    char text[49] = {};
    std::memcpy(text, brand, 48);
    out.name = text;
  }
#endif
  return out;
}

CpuFeatures LimitTier(CpuFeatures features, const std::string& tier) {
  if (tier == "generic") {
    features.avx2 = false;
    features.avx_vnni = false;
  }
  if (tier == "generic" || tier == "avx2") {
    features.avx512 = features.avx512_vnni = features.avx512_bf16 = false;
  }
  return features;
}

const CpuFeatures& HostCpu() {
  static const CpuFeatures* features = [] {
    const char* tier = std::getenv("SAGE_CPU_TIER");
    return new CpuFeatures(LimitTier(DetectCpu(), tier == nullptr ? "" : tier));
  }();
  return *features;
}

}  // namespace sage
