// Sixteen-lane vectors in plain C++: the tier that runs everywhere and defines what the others must compute, bit for
// bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "engine/tensor/float_convert.h"

namespace sage::cpu::generic {

// Rows of activations that share one pass over a panel: as many as the registers hold.
constexpr int kPanelRows = 4;
// Panels of 16 outputs beside one another in a tile.
constexpr int kPanelCols = 1;
// Panels beside one another for a single row; rows up to which weights are decoded anew for each tile of rows.
constexpr int kDecodeCols = 1;
constexpr int kDirectRows = 4;
// Up to so many sums of a tile would wait for themselves: they run as two chains.
constexpr int kFewSums = 0;
// Plain float weights: rows of activations and of weights in a tile.
constexpr int kDenseRows = 2, kDenseCols = 2;
// Attention: queries, key vectors and value vectors of one tile.
constexpr int kTileQ = 6, kTileK = 1, kTileD = 1;

struct F {  // float x 16
  float v[16];
  static F Zero() { return Set1(0.0f); }
  static F Set1(float x) {
    F r;
    for (float& e : r.v) e = x;
    return r;
  }
  static F Load(const float* p) {
    F r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static F Load(const uint16_t* p, bool half) {
    F r;
    for (int i = 0; i < 16; ++i) r.v[i] = half ? F16ToFloat(p[i]) : BF16ToFloat(p[i]);
    return r;
  }
  static F Load(const int8_t* p) {
    F r;
    for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(p[i]);
    return r;
  }
  void Store(float* p) const { std::memcpy(p, v, sizeof v); }
};
inline const F& Pinned(const F& a) { return a; }
inline F Fma(const F& a, const F& b, const F& c) {
  F r;
  for (int i = 0; i < 16; ++i) r.v[i] = std::fma(a.v[i], b.v[i], c.v[i]);
  return r;
}
inline F Mul(const F& a, const F& b) {
  F r;
  for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] * b.v[i];
  return r;
}
inline F Add(const F& a, const F& b) {
  F r;
  for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] + b.v[i];
  return r;
}
inline F Sub(const F& a, const F& b) {
  F r;
  for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] - b.v[i];
  return r;
}
inline F Div(const F& a, const F& b) {
  F r;
  for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] / b.v[i];
  return r;
}
// a > b ? a : b, as the vector instructions do.
inline F Max(const F& a, const F& b) {
  F r;
  for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return r;
}
inline F Min(const F& a, const F& b) {
  F r;
  for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
  return r;
}
inline F Abs(const F& a) {
  F r;
  for (int i = 0; i < 16; ++i) r.v[i] = std::fabs(a.v[i]);
  return r;
}
// Lanes 8..15 onto 0..7, 4..7 onto 0..3, and so on: the one order of a lane sum.
inline float Sum(const F& a) {
  float t[16];
  std::memcpy(t, a.v, sizeof t);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) t[i] += t[i + half];
  }
  return t[0];
}
inline float MaxLane(const F& a) {
  float m = a.v[0];
  for (int i = 1; i < 16; ++i) m = m > a.v[i] ? m : a.v[i];
  return m;
}
// Nearest integer, half to even, of |x| < 2^22: adding and taking away 1.5 * 2^23.
inline F Round(const F& a) {
  F r;
  for (int i = 0; i < 16; ++i) r.v[i] = std::nearbyintf(a.v[i]);
  return r;
}
// 2^n of whole n in [-126, 127].
inline F PowerOfTwo(const F& n) {
  F r;
  for (int i = 0; i < 16; ++i) {
    // What NaN becomes here is multiplied by a NaN; only the conversion must be defined.
    const int32_t whole = n.v[i] == n.v[i] ? static_cast<int32_t>(n.v[i]) : 0;
    r.v[i] = std::bit_cast<float>((whole + 127) << 23);
  }
  return r;
}
inline void StoreInt8(const F& whole, int8_t* p) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(whole.v[i]);
}
inline void StoreInt16(const F& whole, int16_t* p) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int16_t>(whole.v[i]);
}

inline void Prefetch(const void*) {}

struct W {  // int16 x 32
  int16_t v[32];
  static W Load(const void* p) {
    W r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
  void Store(void* p) const { std::memcpy(p, v, sizeof v); }
  static W FromI8(const uint8_t* p) {
    W r;
    for (int i = 0; i < 32; ++i) r.v[i] = static_cast<int8_t>(p[i]);
    return r;
  }
  // The four bytes at p in every 32-bit lane: two int16 or four int8.
  static W Four(const void* p) {
    W r;
    for (int i = 0; i < 32; i += 2) std::memcpy(r.v + i, p, 4);
    return r;
  }
};
// Low and high nibbles of 32 bytes as int16.
inline void Nibbles32(const uint8_t* p, W* low, W* high) {
  for (int i = 0; i < 32; ++i) {
    low->v[i] = p[i] & 15;
    high->v[i] = p[i] >> 4;
  }
}
// Low and high nibbles of 64 bytes as bytes.
inline void Nibbles64(const uint8_t* p, W* low, W* high) {
  uint8_t a[64], b[64];
  for (int i = 0; i < 64; ++i) {
    a[i] = p[i] & 15;
    b[i] = p[i] >> 4;
  }
  std::memcpy(low->v, a, sizeof a);
  std::memcpy(high->v, b, sizeof b);
}
inline W LessInt16(const W& x, int bias) {
  W r;
  for (int i = 0; i < 32; ++i) r.v[i] = static_cast<int16_t>(x.v[i] - bias);
  return r;
}

struct I {  // int32 x 16
  int32_t v[16];
  static I Zero() { return Set1(0); }
  static I Set1(int32_t x) {
    I r;
    for (int32_t& e : r.v) e = x;
    return r;
  }
  static I Load(const void* p) {
    I r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
};
// acc[i] += a[2i] * b[2i] + a[2i+1] * b[2i+1].
inline I Dot(const I& acc, const W& a, const W& b) {
  I r;
  for (int i = 0; i < 16; ++i) {
    r.v[i] = acc.v[i] + static_cast<int32_t>(a.v[2 * i]) * b.v[2 * i] +
             static_cast<int32_t>(a.v[2 * i + 1]) * b.v[2 * i + 1];
  }
  return r;
}
// Four bytes a lane: codes 0..255 against int8.
inline I DotBytes(const I& acc, const W& codes, const W& x) {
  uint8_t c[64];
  int8_t v[64];
  std::memcpy(c, codes.v, sizeof c);
  std::memcpy(v, x.v, sizeof v);
  I r;
  for (int i = 0; i < 16; ++i) {
    r.v[i] = acc.v[i];
    for (int j = 4 * i; j < 4 * i + 4; ++j) r.v[i] += static_cast<int32_t>(c[j]) * v[j];
  }
  return r;
}
inline I Add(const I& a, const I& b) {
  I r;
  for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] + b.v[i];
  return r;
}
inline F ToFloat(const I& a) {
  F r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(a.v[i]);
  return r;
}

// Sums of codes 0..15 against int8, exact for kSteps additions: begun from a wide sum, ended as it or joined to one.
struct NibbleSums {
  static constexpr int64_t kSteps = 1 << 20;
  I sum;
  static NibbleSums Zero() { return {I::Zero()}; }
};
inline NibbleSums AddNibbles(const NibbleSums& s, const W& codes, const W& x) { return {DotBytes(s.sum, codes, x)}; }
inline I JoinNibbles(const I& sum, const NibbleSums& s) { return Add(sum, s.sum); }
inline NibbleSums BeginNibbles(const I& sum) { return {sum}; }
inline I EndNibbles(const I&, const NibbleSums& s) { return s.sum; }

// Float codes of 16 outputs: input k in `first`, k + 1 in `second`. An e4m3 code moved into the bits of an f16 is the
// value times 2^-8, exactly; the scales carry the missing 2^8.
inline F HalfBits(const uint8_t* p, bool e4m3) {
  F r;
  for (int i = 0; i < 16; ++i) {
    const uint32_t code = p[i];
    r.v[i] = F16ToFloat(static_cast<uint16_t>(e4m3 ? (code & 0x80u) << 8 | (code & 0x7fu) << 7 : code << 8));
  }
  return r;
}
inline F E4M3(const uint8_t* p) { return HalfBits(p, true); }
inline F E5M2(const uint8_t* p) { return HalfBits(p, false); }
inline void E4M3Pair(const uint8_t* p, F* first, F* second) {
  *first = E4M3(p);
  *second = E4M3(p + 16);
}
inline void E5M2Pair(const uint8_t* p, F* first, F* second) {
  *first = E5M2(p);
  *second = E5M2(p + 16);
}
struct Table {
  float v[16];
  static Table Load(const float* p) {
    Table r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
  }
};
inline F LookUpLow(const Table& table, const uint8_t* p) {
  F r;
  for (int i = 0; i < 16; ++i) r.v[i] = table.v[p[i] & 15];
  return r;
}
inline void LookUpPair(const Table& table, const uint8_t* p, F* first, F* second) {
  *first = LookUpLow(table, p);
  for (int i = 0; i < 16; ++i) second->v[i] = table.v[p[i] >> 4];
}

}  // namespace sage::cpu::generic
