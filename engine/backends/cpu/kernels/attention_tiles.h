// The two products of attention over tiles of queries: scores q.k with sixteen positions a vector, and values weighted
// into accumulators with sixteen channels a vector. A score is one chain over the channels and an accumulator one chain
// over the positions, so tile sizes never change a bit.
#pragma once

#include <cstdint>

#include "engine/backends/cpu/kernels/tier.h"

namespace sage::cpu::SAGE_TIER {

struct TileF32 {
  using Type = float;
  static constexpr bool kFactors = false;
  static F At(const float* p) { return F::Load(p); }
};
struct TileBF16 {
  using Type = uint16_t;
  static constexpr bool kFactors = false;
  static F At(const uint16_t* p) { return F::Load(p, false); }
};
struct TileF16 {
  using Type = uint16_t;
  static constexpr bool kFactors = false;
  static F At(const uint16_t* p) { return F::Load(p, true); }
};
// Codes of 8-bit floats: e4m3 times 2^-8.
struct TileE4M3 {
  using Type = uint8_t;
  static constexpr bool kFactors = false;
  static F At(const uint8_t* p) { return E4M3(p); }
};
struct TileE5M2 {
  using Type = uint8_t;
  static constexpr bool kFactors = false;
  static F At(const uint8_t* p) { return E5M2(p); }
};
struct TileI8 {
  using Type = int8_t;
  static constexpr bool kFactors = false;
  static F At(const int8_t* p) { return F::Load(p); }
};
// With a factor for each channel, a power of two: f32 [Dp] for each block.
struct TileI8Factors {
  using Type = int8_t;
  static constexpr bool kFactors = true;
  static F At(const int8_t* p) { return F::Load(p); }
};

// Blocks of 16 positions as a tile reads them.
template <class T>
struct TileBlocks {
  const typename T::Type* at[kPartKeys / 16];
  const float* factors[kPartKeys / 16];  // where T has them
  // What is asked from memory while block b is worked on: sixteen values are `ahead_bytes` there. Null: nothing. Asked
  // line by line between the products, because a burst would wait for the memory before it.
  const uint8_t* ahead[kPartKeys / 16];
  int64_t ahead_bytes = 0;
  void Ask(int64_t b, int64_t i) const {
    if (ahead[b] != nullptr && i * ahead_bytes % 64 == 0) Prefetch(ahead[b] + i * ahead_bytes);
  }
};

// Scores of NQ queries (row stride Dp) with NK blocks of 16 positions, each block [Dp][16].
template <class T, int NQ, int NK, bool kAsk>
void ScoreTile(const TileBlocks<T>& k, int64_t b, int64_t D, int64_t Dp, const float* q, float* scores) {
  F acc[NQ][NK];
  for (auto& row : acc) {
    for (F& a : row) a = F::Zero();
  }
  for (int64_t d = 0; d < D; ++d) {
    F key[NK];
    for (int j = 0; j < NK; ++j) {
      key[j] = T::At(k.at[b + j] + d * 16);
      if constexpr (T::kFactors) key[j] = Mul(key[j], F::Set1(k.factors[b + j][d]));
      if constexpr (kAsk) k.Ask(b + j, d);
    }
    for (int i = 0; i < NQ; ++i) {
      const F x = F::Set1(q[i * Dp + d]);
      for (int j = 0; j < NK; ++j) acc[i][j] = Fma(x, key[j], acc[i][j]);
    }
  }
  for (int i = 0; i < NQ; ++i) {
    for (int j = 0; j < NK; ++j) acc[i][j].Store(scores + i * kPartKeys + j * 16);
  }
}

// acc += weight * value over positions [begin, end) of blocks [16][Dp], for NQ queries and ND vectors of channels.
template <class T, int NQ, int ND, bool kAsk>
void ValueTile(const TileBlocks<T>& v, int64_t d, int64_t Dp, int64_t begin, int64_t end, const float* weights,
               float* acc, int64_t acc_stride) {
  F sum[NQ][ND];
  for (int i = 0; i < NQ; ++i) {
    for (int j = 0; j < ND; ++j) sum[i][j] = F::Load(acc + i * acc_stride + j * 16);
  }
  for (int64_t block = begin / 16; block * 16 < end; ++block) {
    const int64_t first = block * 16 < begin ? begin : block * 16, last = block * 16 + 16 < end ? block * 16 + 16 : end;
    for (int64_t t = first; t < last; ++t) {
      const typename T::Type* const row = v.at[block] + t % 16 * Dp + d;
      F value[ND];
      for (int j = 0; j < ND; ++j) {
        value[j] = T::At(row + j * 16);
        if constexpr (T::kFactors) value[j] = Mul(value[j], F::Load(v.factors[block] + d + j * 16));
        if constexpr (kAsk) v.Ask(block, (t % 16 * Dp + d) / 16 + j);
      }
      for (int i = 0; i < NQ; ++i) {
        const F w = F::Set1(weights[i * kPartKeys + t]);
        for (int j = 0; j < ND; ++j) sum[i][j] = Fma(w, value[j], sum[i][j]);
      }
    }
  }
  for (int i = 0; i < NQ; ++i) {
    for (int j = 0; j < ND; ++j) sum[i][j].Store(acc + i * acc_stride + j * 16);
  }
}

// `body.template operator()<N>(first)` over tiles of at most kTileQ queries, as even as they come.
template <class Body>
void ForQueryTiles(int64_t queries, const Body& body) {
  for (int64_t left = queries; left > 0;) {
    const int64_t tiles = (left + kTileQ - 1) / kTileQ;
    const int64_t n = (left + tiles - 1) / tiles, first = queries - left;
    static_assert(kTileQ == 6);
    switch (n) {
      case 1:
        body.template operator()<1>(first);
        break;
      case 2:
        body.template operator()<2>(first);
        break;
      case 3:
        body.template operator()<3>(first);
        break;
      case 4:
        body.template operator()<4>(first);
        break;
      case 5:
        body.template operator()<5>(first);
        break;
      default:
        body.template operator()<6>(first);
        break;
    }
    left -= n;
  }
}

// Scores of all queries with blocks [first, last).
template <class T, bool kAsk = false>
void Scores(const TileBlocks<T>& k, int64_t first, int64_t last, int64_t D, int64_t Dp, const float* q, int64_t queries,
            float* scores) {
  ForQueryTiles(queries, [&]<int NQ>(int64_t query) {
    float* const to = scores + query * kPartKeys;
    int64_t b = first;
    for (; b + kTileK <= last; b += kTileK) ScoreTile<T, NQ, kTileK, kAsk>(k, b, D, Dp, q + query * Dp, to + b * 16);
    for (; b < last; ++b) ScoreTile<T, NQ, 1, kAsk>(k, b, D, Dp, q + query * Dp, to + b * 16);
  });
}

// Weighted values of positions [begin, end) of the part.
template <class T, bool kAsk = false>
void Values(const TileBlocks<T>& v, int64_t Dp, int64_t begin, int64_t end, const float* weights, int64_t queries,
            float* acc, int64_t acc_stride) {
  if (begin >= end) return;
  ForQueryTiles(queries, [&]<int NQ>(int64_t query) {
    const float* const w = weights + query * kPartKeys;
    float* const to = acc + query * acc_stride;
    int64_t d = 0;
    for (; d + kTileD * 16 <= Dp; d += kTileD * 16) {
      ValueTile<T, NQ, kTileD, kAsk>(v, d, Dp, begin, end, w, to + d, acc_stride);
    }
    for (; d < Dp; d += 16) ValueTile<T, NQ, 1, kAsk>(v, d, Dp, begin, end, w, to + d, acc_stride);
  });
}

}  // namespace sage::cpu::SAGE_TIER
