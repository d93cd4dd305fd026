// The sixteen-lane vectors on AVX-512 (F, BW, VL, DQ, VNNI): same operations, same order, same bits as simd_generic.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace sage::cpu::avx512 {

// Rows of activations that share one pass over a panel: as many as the registers hold.
constexpr int kPanelRows = 8;
// Panels of 16 outputs beside one another in a tile.
constexpr int kPanelCols = 2;
// Panels beside one another for a single row; rows up to which weights are decoded anew for each tile of rows.
constexpr int kDecodeCols = 2;
constexpr int kDirectRows = 32;
// Up to so many sums of a tile would wait for themselves: they run as two chains.
constexpr int kFewSums = 4;
// Plain float weights: rows of activations and of weights in a tile.
constexpr int kDenseRows = 6, kDenseCols = 4;
// Attention: queries, key vectors and value vectors of one tile.
constexpr int kTileQ = 6, kTileK = 4, kTileD = 4;

struct F {
  __m512 v;
  static F Zero() { return {_mm512_setzero_ps()}; }
  static F Set1(float x) { return {_mm512_set1_ps(x)}; }
  static F Load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static F Load(const uint16_t* p, bool half) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if (half) return {_mm512_cvtph_ps(raw)};
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
  }
  static F Load(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
  void Store(float* p) const { _mm512_storeu_ps(p, v); }
};
// Keeps a loaded vector in its register: GCC would load it again for every product, and loads are what binds then.
inline F Pinned(F a) {
  asm("" : "+v"(a.v));
  return a;
}
inline F Fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F Mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F Add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F Sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F Div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F Max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F Min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F Abs(F a) { return {_mm512_abs_ps(a.v)}; }
inline float Sum(F a) {
  const __m256 e = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
// The sums of four vectors, each in the order of Sum.
inline void Sum4(const F (&a)[4], float* out) {
  const __m512 e =
      _mm512_add_ps(_mm512_shuffle_f32x4(a[0].v, a[1].v, 0x44), _mm512_shuffle_f32x4(a[0].v, a[1].v, 0xee));
  const __m512 f =
      _mm512_add_ps(_mm512_shuffle_f32x4(a[2].v, a[3].v, 0x44), _mm512_shuffle_f32x4(a[2].v, a[3].v, 0xee));
  const __m512 q = _mm512_add_ps(_mm512_shuffle_f32x4(e, f, 0x88), _mm512_shuffle_f32x4(e, f, 0xdd));
  const __m512 d = _mm512_add_ps(q, _mm512_permute_ps(q, 0x4e));
  const __m512 sums = _mm512_add_ps(d, _mm512_movehdup_ps(d));
  const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(first, sums)));
}
inline float MaxLane(F a) { return _mm512_reduce_max_ps(a.v); }
inline F Round(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F PowerOfTwo(F n) {
  const __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(e, 23))};
}
inline void StoreInt8(F whole, int8_t* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(whole.v)));
}
inline void StoreInt16(F whole, int16_t* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(whole.v)));
}

inline void Prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

struct W {
  __m512i v;
  static W Load(const void* p) { return {_mm512_loadu_si512(p)}; }
  void Store(void* p) const { _mm512_storeu_si512(p, v); }
  static W FromI8(const uint8_t* p) {
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  // The four bytes at p in every 32-bit lane: two int16 or four int8.
  static W Four(const void* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return {_mm512_set1_epi32(four)};
  }
};
inline void Nibbles32(const uint8_t* p, W* low, W* high) {
  const __m512i w = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  low->v = _mm512_and_si512(w, _mm512_set1_epi16(15));
  high->v = _mm512_srli_epi16(w, 4);
}
// Low and high nibbles of 64 bytes as bytes.
inline void Nibbles64(const uint8_t* p, W* low, W* high) {
  const __m512i w = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
  low->v = _mm512_and_si512(w, mask);
  high->v = _mm512_and_si512(_mm512_srli_epi16(w, 4), mask);
}
inline W LessInt16(W x, int bias) { return {_mm512_sub_epi16(x.v, _mm512_set1_epi16(static_cast<short>(bias)))}; }

struct I {
  __m512i v;
  static I Zero() { return {_mm512_setzero_si512()}; }
  static I Set1(int32_t x) { return {_mm512_set1_epi32(x)}; }
  static I Load(const void* p) { return {_mm512_loadu_si512(p)}; }
};
// Written as instructions: through the intrinsics GCC 12 copies every sum into another register and back for each
// product and spills some, which halves the rate of these loops.
inline I Dot(I acc, W a, W b) {
  asm("vpdpwssd %2, %1, %0" : "+v"(acc.v) : "v"(a.v), "v"(b.v));
  return acc;
}
// Four bytes a lane: codes 0..255 against int8.
inline I DotBytes(I acc, W codes, W x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(codes.v), "v"(x.v));
  return acc;
}
inline I Add(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline F ToFloat(I a) { return {_mm512_cvtepi32_ps(a.v)}; }

// Sums of codes 0..15 against int8, exact for kSteps additions: begun from a wide sum, ended as it or joined to one.
struct NibbleSums {
  static constexpr int64_t kSteps = 1 << 20;
  I sum;
  static NibbleSums Zero() { return {I::Zero()}; }
};
inline NibbleSums AddNibbles(NibbleSums s, W codes, W x) { return {DotBytes(s.sum, codes, x)}; }
inline I JoinNibbles(I sum, NibbleSums s) { return Add(sum, s.sum); }
inline NibbleSums BeginNibbles(I sum) { return {sum}; }
inline I EndNibbles(I, NibbleSums s) { return s.sum; }

// Codes in the upper bits of f16 lanes: see simd_generic.h.
inline F E4M3(const uint8_t* p) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<short>(0xbf80))))};
}
inline F E5M2(const uint8_t* p) {
  const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm512_cvtph_ps(_mm256_slli_epi16(wide, 8))};
}
inline void E4M3Pair(const uint8_t* p, F* first, F* second) {
  *first = E4M3(p);
  *second = E4M3(p + 16);
}
inline void E5M2Pair(const uint8_t* p, F* first, F* second) {
  *first = E5M2(p);
  *second = E5M2(p + 16);
}
struct Table {
  __m512 v;
  static Table Load(const float* p) { return {_mm512_loadu_ps(p)}; }
};
// The permute reads the low four bits of an index.
inline F LookUpLow(const Table& table, const uint8_t* p) {
  const __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm512_permutexvar_ps(index, table.v)};
}
inline void LookUpPair(const Table& table, const uint8_t* p, F* first, F* second) {
  const __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  first->v = _mm512_permutexvar_ps(index, table.v);
  second->v = _mm512_permutexvar_ps(_mm512_srli_epi32(index, 4), table.v);
}

}  // namespace sage::cpu::avx512
