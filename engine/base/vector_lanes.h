// Vectors of f32 and f64 for code that picks its instruction set at run time without compiler flags of its own: each
// struct carries its functions' target attribute, so one file can hold a version a tier.
//
// A function that uses avx2::F32 must itself be marked SAGE_TARGET_AVX2 and be called only after a cpuid check. Away
// from x86-64 the tiers are the plain version. Fma rounds once in every tier, so equal chains give equal bits.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#define SAGE_TARGET_AVX2 __attribute__((target("avx2,fma")))
#define SAGE_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")))
#else
#define SAGE_TARGET_AVX2
#define SAGE_TARGET_AVX512
#endif
#define SAGE_ALWAYS_INLINE inline __attribute__((always_inline))

namespace sage::lanes {

namespace plain {
template <typename Element>
struct Vector {
  using T = Element;
  struct R {
    T lane[4];
  };
  static constexpr int kLanes = 4, kTileRows = 4, kTileVectors = 1;
  static R Zero() { return {}; }
  static R Load(const T* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static R Broadcast(const T* p) { return {{*p, *p, *p, *p}}; }
  static R Fma(R a, R b, R c) {
    for (int i = 0; i < kLanes; ++i) c.lane[i] = std::fma(a.lane[i], b.lane[i], c.lane[i]);
    return c;
  }
  static void Store(T* p, R a) {
    for (int i = 0; i < kLanes; ++i) p[i] = a.lane[i];
  }
};
using F32 = Vector<float>;
using F64 = Vector<double>;
}  // namespace plain

#if defined(__x86_64__)
// kTileRows x kTileVectors accumulators, one row's vectors and a broadcast fill the registers of the tier.
namespace avx2 {
struct F32 {
  using T = float;
  using R = __m256;
  static constexpr int kLanes = 8, kTileRows = 6, kTileVectors = 2;
  SAGE_TARGET_AVX2 SAGE_ALWAYS_INLINE static R Zero() { return _mm256_setzero_ps(); }
  SAGE_TARGET_AVX2 SAGE_ALWAYS_INLINE static R Load(const T* p) { return _mm256_loadu_ps(p); }
  SAGE_TARGET_AVX2 SAGE_ALWAYS_INLINE static R Broadcast(const T* p) { return _mm256_broadcast_ss(p); }
  SAGE_TARGET_AVX2 SAGE_ALWAYS_INLINE static R Fma(R a, R b, R c) { return _mm256_fmadd_ps(a, b, c); }
  SAGE_TARGET_AVX2 SAGE_ALWAYS_INLINE static void Store(T* p, R a) { _mm256_storeu_ps(p, a); }
};
struct F64 {
  using T = double;
  using R = __m256d;
  static constexpr int kLanes = 4, kTileRows = 6, kTileVectors = 2;
  SAGE_TARGET_AVX2 SAGE_ALWAYS_INLINE static R Zero() { return _mm256_setzero_pd(); }
  SAGE_TARGET_AVX2 SAGE_ALWAYS_INLINE static R Load(const T* p) { return _mm256_loadu_pd(p); }
  SAGE_TARGET_AVX2 SAGE_ALWAYS_INLINE static R Broadcast(const T* p) { return _mm256_broadcast_sd(p); }
  SAGE_TARGET_AVX2 SAGE_ALWAYS_INLINE static R Fma(R a, R b, R c) { return _mm256_fmadd_pd(a, b, c); }
  SAGE_TARGET_AVX2 SAGE_ALWAYS_INLINE static void Store(T* p, R a) { _mm256_storeu_pd(p, a); }
};
}  // namespace avx2

namespace avx512 {
struct F32 {
  using T = float;
  using R = __m512;
  static constexpr int kLanes = 16, kTileRows = 12, kTileVectors = 2;
  SAGE_TARGET_AVX512 SAGE_ALWAYS_INLINE static R Zero() { return _mm512_setzero_ps(); }
  SAGE_TARGET_AVX512 SAGE_ALWAYS_INLINE static R Load(const T* p) { return _mm512_loadu_ps(p); }
  SAGE_TARGET_AVX512 SAGE_ALWAYS_INLINE static R Broadcast(const T* p) { return _mm512_set1_ps(*p); }
  SAGE_TARGET_AVX512 SAGE_ALWAYS_INLINE static R Fma(R a, R b, R c) { return _mm512_fmadd_ps(a, b, c); }
  SAGE_TARGET_AVX512 SAGE_ALWAYS_INLINE static void Store(T* p, R a) { _mm512_storeu_ps(p, a); }
};
struct F64 {
  using T = double;
  using R = __m512d;
  static constexpr int kLanes = 8, kTileRows = 12, kTileVectors = 2;
  SAGE_TARGET_AVX512 SAGE_ALWAYS_INLINE static R Zero() { return _mm512_setzero_pd(); }
  SAGE_TARGET_AVX512 SAGE_ALWAYS_INLINE static R Load(const T* p) { return _mm512_loadu_pd(p); }
  SAGE_TARGET_AVX512 SAGE_ALWAYS_INLINE static R Broadcast(const T* p) { return _mm512_set1_pd(*p); }
  SAGE_TARGET_AVX512 SAGE_ALWAYS_INLINE static R Fma(R a, R b, R c) { return _mm512_fmadd_pd(a, b, c); }
  SAGE_TARGET_AVX512 SAGE_ALWAYS_INLINE static void Store(T* p, R a) { _mm512_storeu_pd(p, a); }
};
}  // namespace avx512
#else
namespace avx2 = plain;
namespace avx512 = plain;
#endif

}  // namespace sage::lanes
