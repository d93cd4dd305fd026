// Products with weights in float codes (fp8, nf4, fp4): decoded in registers, f32 FMA against broadcast activations.
//
// Floor at M = 1: the weight bytes over the read bandwidth. Each product owns one accumulator: the sum of a segment
// runs over its inputs in order, then joins the total times the scale, so its bits depend on the weights' layout alone.
// At M = 1 several panels pass together, because one chain of FMAs waits for itself.
#pragma once

#include <cstdint>

#include "engine/backends/cpu/kernels/tier.h"

namespace sage::cpu::SAGE_TIER {

struct DecodeE4M3 {
  static constexpr int64_t kPairBytes = 32;
  explicit DecodeE4M3(const FloatPanels&) {}
  void Pair(const uint8_t* p, F* first, F* second) const { E4M3Pair(p, first, second); }
  F Last(const uint8_t* p) const { return E4M3(p); }
};
struct DecodeE5M2 {
  static constexpr int64_t kPairBytes = 32;
  explicit DecodeE5M2(const FloatPanels&) {}
  void Pair(const uint8_t* p, F* first, F* second) const { E5M2Pair(p, first, second); }
  F Last(const uint8_t* p) const { return E5M2(p); }
};
struct DecodeTable {
  static constexpr int64_t kPairBytes = 16;
  explicit DecodeTable(const FloatPanels& w) : table(Table::Load(w.table)) {}
  void Pair(const uint8_t* p, F* first, F* second) const { LookUpPair(table, p, first, second); }
  F Last(const uint8_t* p) const { return LookUpLow(table, p); }
  Table table;
};

// MR rows of x against PR panels from `panel` on.
template <class Decode, int MR, int PR>
inline void FloatTile(const Decode& decode, const float* x, int64_t x_stride, const FloatPanels& w, int64_t panel,
                      F (&acc)[MR][PR]) {
  for (int m = 0; m < MR; ++m) {
    for (int p = 0; p < PR; ++p) acc[m][p] = F::Zero();
  }
  const uint8_t* codes = w.codes + panel * w.panel_bytes;
  for (int64_t s = 0; s < w.segments; ++s) {
    F sum[MR][PR];
    for (int m = 0; m < MR; ++m) {
      for (int p = 0; p < PR; ++p) sum[m][p] = F::Zero();
    }
    int64_t k = w.begin[s];
    const int64_t end = w.begin[s + 1];
    for (; k + 2 <= end; k += 2, codes += Decode::kPairBytes) {
      F first[PR], second[PR];
      for (int p = 0; p < PR; ++p) {
        decode.Pair(codes + p * w.panel_bytes, &first[p], &second[p]);
        __builtin_prefetch(codes + p * w.panel_bytes + 2048);
      }
      for (int m = 0; m < MR; ++m) {
        const F a = F::Set1(x[m * x_stride + k]);
        for (int p = 0; p < PR; ++p) sum[m][p] = Fma(first[p], a, sum[m][p]);
      }
      for (int m = 0; m < MR; ++m) {
        const F a = F::Set1(x[m * x_stride + k + 1]);
        for (int p = 0; p < PR; ++p) sum[m][p] = Fma(second[p], a, sum[m][p]);
      }
    }
    if (k < end) {
      for (int p = 0; p < PR; ++p) {
        const F last = decode.Last(codes + p * w.panel_bytes);
        for (int m = 0; m < MR; ++m) sum[m][p] = Fma(last, F::Set1(x[m * x_stride + k]), sum[m][p]);
      }
      codes += 16;
    }
    for (int p = 0; p < PR; ++p) {
      const F scale = F::Load(w.scale + ((panel + p) * w.scales + w.column[s]) * 16);
      for (int m = 0; m < MR; ++m) acc[m][p] = Fma(sum[m][p], scale, acc[m][p]);
    }
  }
}

template <class Decode, int MR, int PR>
inline void FloatStore(const Decode& decode, const float* x, int64_t x_stride, const FloatPanels& w, int64_t panel,
                       int64_t N, const float* bias, float* out, int64_t out_stride) {
  F acc[MR][PR];
  FloatTile<Decode, MR, PR>(decode, x, x_stride, w, panel, acc);
  for (int p = 0; p < PR; ++p) {
    const int64_t n = (panel + p) * 16;
    for (int m = 0; m < MR; ++m) {
      float* row = out + m * out_stride + n;
      if (bias == nullptr && n + 16 <= N) {
        acc[m][p].Store(row);
        continue;
      }
      float values[16];
      acc[m][p].Store(values);
      for (int64_t i = 0; i < 16 && n + i < N; ++i) row[i] = values[i] + (bias == nullptr ? 0.0f : bias[n + i]);
    }
  }
}

// All rows against PR panels.
template <class Decode, int PR>
inline void FloatRows(const Decode& decode, const float* x, int64_t x_stride, int64_t M, const FloatPanels& w,
                      int64_t panel, int64_t N, const float* bias, float* out, int64_t out_stride) {
  int64_t m = 0;
  const auto tiles = [&]<int MR>() {
    for (; m + MR <= M; m += MR) {
      FloatStore<Decode, MR, PR>(decode, x + m * x_stride, x_stride, w, panel, N, bias, out + m * out_stride,
                                 out_stride);
    }
  };
  tiles.template operator()<kPanelRows>();
  if constexpr (kPanelRows > 4) tiles.template operator()<4>();
  tiles.template operator()<2>();
  tiles.template operator()<1>();
}

template <class Decode>
inline void FloatRange(const float* x, int64_t x_stride, int64_t M, const FloatPanels& w, int64_t p_begin,
                       int64_t p_end, int64_t N, const float* bias, float* out, int64_t out_stride) {
  const Decode decode(w);
  int64_t p = p_begin;
  if (M == 1) {
    for (; p + 4 <= p_end; p += 4) {
      FloatStore<Decode, 1, 4>(decode, x, x_stride, w, p, N, bias, out, out_stride);
    }
  } else {
    for (; p + 2 <= p_end; p += 2) {
      FloatRows<Decode, 2>(decode, x, x_stride, M, w, p, N, bias, out, out_stride);
    }
  }
  for (; p < p_end; ++p) FloatRows<Decode, 1>(decode, x, x_stride, M, w, p, N, bias, out, out_stride);
}

void FloatPanelRange(const float* x, int64_t x_stride, int64_t M, const FloatPanels& w, int64_t p_begin, int64_t p_end,
                     int64_t N, const float* bias, float* out, int64_t out_stride) {
  switch (w.code) {
    case FloatCode::kE4M3:
      return FloatRange<DecodeE4M3>(x, x_stride, M, w, p_begin, p_end, N, bias, out, out_stride);
    case FloatCode::kE5M2:
      return FloatRange<DecodeE5M2>(x, x_stride, M, w, p_begin, p_end, N, bias, out, out_stride);
    case FloatCode::kTable16:
      return FloatRange<DecodeTable>(x, x_stride, M, w, p_begin, p_end, N, bias, out, out_stride);
  }
}

}  // namespace sage::cpu::SAGE_TIER
