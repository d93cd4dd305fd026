// Products with weights in float codes (fp8, nf4, fp4): decoded in registers, f32 FMA against broadcast activations.
//
// Floor at M = 1: the weight bytes over the read bandwidth. Each product owns one accumulator: the sum of a segment
// runs over its inputs in order, then joins the total times the scale, so its bits depend on the weights' layout alone.
// At M = 1 several panels pass together, because one chain of FMAs waits for itself; many rows share a decoded segment
// (panels_impl.h).
#pragma once

#include <cstdint>

#include "engine/backends/cpu/kernels/panel_limits.h"
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
    for (int m = 0; m < MR; ++m) StoreOutputs(acc[m][p], (panel + p) * 16, N, bias, out + m * out_stride);
  }
}

// One segment in f32 at `wide` [inputs][PR][16], added to the f32 sums [MR][PR][16] of MR rows.
template <int MR, int PR>
inline void FloatSegment(const float* wide, int64_t inputs, const float* x, int64_t x_stride, const float* scale,
                         int64_t scale_stride, float* sums) {
  F sum[MR][PR];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int p = 0; p < PR; ++p) sum[m][p] = F::Zero();
  }
  for (const float* end = wide + inputs * PR * 16; wide != end; wide += PR * 16, ++x) {
    F weights[PR];
#pragma GCC unroll 4
    for (int p = 0; p < PR; ++p) weights[p] = Pinned(F::Load(wide + p * 16));
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      const F a = F::Set1(x[m * x_stride]);
#pragma GCC unroll 4
      for (int p = 0; p < PR; ++p) sum[m][p] = Fma(weights[p], a, sum[m][p]);
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < PR; ++p) {
    const F factor = F::Load(scale + p * scale_stride);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      float* own = sums + (m * PR + p) * 16;
      Fma(sum[m][p], factor, F::Load(own)).Store(own);
    }
  }
}

// Rows [begin, end), at most kChunkRows, against PR panels: each segment is decoded once, into the first cache level.
template <class Decode, int PR>
inline void FloatBlockedRows(const Decode& decode, const float* x, int64_t x_stride, int64_t begin, int64_t end,
                             const FloatPanels& w, int64_t panel, int64_t N, const float* bias, float* out,
                             int64_t out_stride) {
  alignas(64) float wide[kLongestSegment * PR * 16];
  alignas(64) float sums[kChunkRows * PR * 16];
  for (int64_t i = 0; i < (end - begin) * PR * 16; i += 16) F::Zero().Store(sums + i);
  const uint8_t* codes = w.codes + panel * w.panel_bytes;
  for (int64_t s = 0; s < w.segments; ++s) {
    const int64_t inputs = w.begin[s + 1] - w.begin[s];
    int64_t k = 0;
    for (; k + 2 <= inputs; k += 2, codes += Decode::kPairBytes) {
      for (int p = 0; p < PR; ++p) {
        F first, second;
        decode.Pair(codes + p * w.panel_bytes, &first, &second);
        Prefetch(codes + p * w.panel_bytes + 2048);
        first.Store(wide + (k * PR + p) * 16);
        second.Store(wide + ((k + 1) * PR + p) * 16);
      }
    }
    if (k < inputs) {
      for (int p = 0; p < PR; ++p) decode.Last(codes + p * w.panel_bytes).Store(wide + (k * PR + p) * 16);
      codes += 16;
    }
    OverRows<kPanelRows>(begin, end, [&]<int MR>(int64_t m0) {
      FloatSegment<MR, PR>(wide, inputs, x + m0 * x_stride + w.begin[s], x_stride,
                           w.scale + (panel * w.scales + w.column[s]) * 16, w.scales * 16,
                           sums + (m0 - begin) * PR * 16);
    });
  }
  for (int64_t m = begin; m < end; ++m) {
    for (int p = 0; p < PR; ++p) {
      StoreOutputs(F::Load(sums + ((m - begin) * PR + p) * 16), (panel + p) * 16, N, bias, out + m * out_stride);
    }
  }
}

// All rows against PR panels.
template <class Decode, int PR>
inline void FloatRows(const Decode& decode, const float* x, int64_t x_stride, int64_t M, const FloatPanels& w,
                      int64_t panel, int64_t N, const float* bias, float* out, int64_t out_stride) {
  if (M <= 2) {
    for (int64_t m = 0; m < M; ++m) {
      FloatStore<Decode, 1, PR>(decode, x + m * x_stride, x_stride, w, panel, N, bias, out + m * out_stride,
                                out_stride);
    }
    return;
  }
  for (int64_t m = 0; m < M; m += kChunkRows) {
    FloatBlockedRows<Decode, PR>(decode, x, x_stride, m, M < m + kChunkRows ? M : m + kChunkRows, w, panel, N, bias,
                                 out, out_stride);
  }
}

template <class Decode>
inline void FloatRange(const float* x, int64_t x_stride, int64_t M, const FloatPanels& w, int64_t p_begin,
                       int64_t p_end, int64_t N, const float* bias, float* out, int64_t out_stride) {
  const Decode decode(w);
  constexpr int kMany = 4;  // M <= 2: more panels at once, because one chain of FMAs waits for itself
  int64_t p = p_begin;
  if (M <= 2) {
    for (; p + kMany <= p_end; p += kMany) {
      FloatRows<Decode, kMany>(decode, x, x_stride, M, w, p, N, bias, out, out_stride);
    }
  } else {
    for (; p + kPanelCols <= p_end; p += kPanelCols) {
      FloatRows<Decode, kPanelCols>(decode, x, x_stride, M, w, p, N, bias, out, out_stride);
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
