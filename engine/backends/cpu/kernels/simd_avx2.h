// The sixteen-lane vectors as pairs of AVX2 registers: same operations, same order, same bits as simd_generic.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace sage::cpu::avx2 {

// Rows of activations that share one pass over a panel: as many as the registers hold.
constexpr int kPanelRows = 4;
// Panels of 16 outputs beside one another in a tile.
constexpr int kPanelCols = 1;
// Panels beside one another for a single row; rows up to which weights are decoded anew for each tile of rows.
constexpr int kDecodeCols = 1;
constexpr int kDirectRows = 4;
// Up to so many sums of a tile would wait for themselves: they run as two chains.
constexpr int kFewSums = 2;
// Plain float weights: rows of activations and of weights in a tile.
constexpr int kDenseRows = 3, kDenseCols = 2;
// Attention: queries, key vectors and value vectors of one tile.
constexpr int kTileQ = 6, kTileK = 1, kTileD = 1;

struct F {
  __m256 a, b;  // lanes 0..7, 8..15
  static F Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F Set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static F Load(const uint16_t* p, bool half) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i y = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8));
    if (half) return {_mm256_cvtph_ps(x), _mm256_cvtph_ps(y)};
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(y), 16))};
  }
  static F Load(const int8_t* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x)))};
  }
  void Store(float* p) const {
    _mm256_storeu_ps(p, a);
    _mm256_storeu_ps(p + 8, b);
  }
};
// Keeps a loaded vector in its registers: GCC would load it again for every product.
inline F Pinned(F x) {
  asm("" : "+x"(x.a), "+x"(x.b));
  return x;
}
inline F Fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F Mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F Add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F Sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F Div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F Max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F Min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F Abs(F x) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask)};
}
inline float Sum(F x) {
  const __m256 e = _mm256_add_ps(x.a, x.b);
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
inline float MaxLane(F x) {
  const __m256 e = _mm256_max_ps(x.a, x.b);
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
  const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}
inline F Round(F x) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, kMode), _mm256_round_ps(x.b, kMode)};
}
inline F PowerOfTwo(F n) {
  const __m256i bias = _mm256_set1_epi32(127);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.a), bias), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.b), bias), 23))};
}
inline void StoreInt8(F whole, int8_t* p) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(whole.a), _mm256_cvtps_epi32(whole.b));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
}
inline void StoreInt16(F whole, int16_t* p) {
  const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(whole.a), _mm256_cvtps_epi32(whole.b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

inline void Prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

struct W {
  __m256i a, b;  // int16 0..15, 16..31
  static W Load(const void* p) {
    const auto* lines = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(lines), _mm256_loadu_si256(lines + 1)};
  }
  void Store(void* p) const {
    auto* lines = static_cast<__m256i*>(p);
    _mm256_storeu_si256(lines, a);
    _mm256_storeu_si256(lines + 1, b);
  }
  static W FromI8(const uint8_t* p) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)))};
  }
  // The four bytes at p in every 32-bit lane: two int16 or four int8.
  static W Four(const void* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return {_mm256_set1_epi32(four), _mm256_set1_epi32(four)};
  }
};
inline void Nibbles32(const uint8_t* p, W* low, W* high) {
  const __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i y = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)));
  const __m256i mask = _mm256_set1_epi16(15);
  low->a = _mm256_and_si256(x, mask);
  low->b = _mm256_and_si256(y, mask);
  high->a = _mm256_srli_epi16(x, 4);
  high->b = _mm256_srli_epi16(y, 4);
}
// Low and high nibbles of 64 bytes as bytes.
inline void Nibbles64(const uint8_t* p, W* low, W* high) {
  const W w = W::Load(p);
  const __m256i mask = _mm256_set1_epi8(15);
  low->a = _mm256_and_si256(w.a, mask);
  low->b = _mm256_and_si256(w.b, mask);
  high->a = _mm256_and_si256(_mm256_srli_epi16(w.a, 4), mask);
  high->b = _mm256_and_si256(_mm256_srli_epi16(w.b, 4), mask);
}
inline W LessInt16(W x, int bias) {
  const __m256i b = _mm256_set1_epi16(static_cast<short>(bias));
  return {_mm256_sub_epi16(x.a, b), _mm256_sub_epi16(x.b, b)};
}

struct I {
  __m256i a, b;
  static I Zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static I Set1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
  static I Load(const void* p) {
    const auto* lines = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(lines), _mm256_loadu_si256(lines + 1)};
  }
};
// Added in place, written as instructions: GCC 12 would add two products to one another first, which needs more
// registers than there are, or copy the sums.
inline void AddTo32(__m256i& sum, __m256i x) { asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(x)); }
inline void AddTo16(__m256i& sum, __m256i x) { asm("vpaddw %1, %0, %0" : "+x"(sum) : "x"(x)); }
inline I Dot(I acc, W x, W y) {
  AddTo32(acc.a, _mm256_madd_epi16(x.a, y.a));
  AddTo32(acc.b, _mm256_madd_epi16(x.b, y.b));
  return acc;
}
// Four bytes a lane: codes 0..255 against int8. Exact only where the sum of two neighbouring products fits int16.
inline I DotBytes(I acc, W codes, W x) {
  const __m256i ones = _mm256_set1_epi16(1);
  AddTo32(acc.a, _mm256_madd_epi16(_mm256_maddubs_epi16(codes.a, x.a), ones));
  AddTo32(acc.b, _mm256_madd_epi16(_mm256_maddubs_epi16(codes.b, x.b), ones));
  return acc;
}
inline I Add(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline F ToFloat(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }

// Sums of codes 0..15 against int8 in pairs of int16: a step adds at most 2 * 15 * 128, so eight of them fit. They
// begin at zero.
struct NibbleSums {
  static constexpr int64_t kSteps = 8;
  __m256i a, b;
  static NibbleSums Zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
};
inline NibbleSums AddNibbles(NibbleSums s, W codes, W x) {
  AddTo16(s.a, _mm256_maddubs_epi16(codes.a, x.a));
  AddTo16(s.b, _mm256_maddubs_epi16(codes.b, x.b));
  return s;
}
inline I JoinNibbles(I sum, NibbleSums s) {
  const __m256i ones = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(s.a, ones)), _mm256_add_epi32(sum.b, _mm256_madd_epi16(s.b, ones))};
}
inline NibbleSums BeginNibbles(I) { return NibbleSums::Zero(); }
inline I EndNibbles(I sum, NibbleSums s) { return JoinNibbles(sum, s); }

// Sixteen codes in the upper bits of f16 lanes: see simd_generic.h.
inline F FromHalfLanes(__m256i lanes) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(lanes)), _mm256_cvtph_ps(_mm256_extracti128_si256(lanes, 1))};
}
inline F E4M3(const uint8_t* p) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return FromHalfLanes(_mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<short>(0xbf80))));
}
inline F E5M2(const uint8_t* p) {
  const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return FromHalfLanes(_mm256_slli_epi16(wide, 8));
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
  __m256 low, high;  // entries 0..7, 8..15
  static Table Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
};
// The permutes read three bits of an index; bit 3, moved to the sign, chooses between them.
inline __m256 LookUp8(const Table& table, __m256i index) {
  const __m256 choice = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, index), _mm256_permutevar8x32_ps(table.high, index),
                          choice);
}
inline F LookUpLow(const Table& table, const uint8_t* p) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {LookUp8(table, _mm256_cvtepu8_epi32(raw)), LookUp8(table, _mm256_cvtepu8_epi32(_mm_srli_si128(raw, 8)))};
}
inline void LookUpPair(const Table& table, const uint8_t* p, F* first, F* second) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m256i a = _mm256_cvtepu8_epi32(raw), b = _mm256_cvtepu8_epi32(_mm_srli_si128(raw, 8));
  *first = {LookUp8(table, a), LookUp8(table, b)};
  *second = {LookUp8(table, _mm256_srli_epi32(a, 4)), LookUp8(table, _mm256_srli_epi32(b, 4))};
}

}  // namespace sage::cpu::avx2
