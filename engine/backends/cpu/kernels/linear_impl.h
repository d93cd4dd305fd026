// Products with float weights that are read where they lie, row by row.
//
// Floors. Few rows: the weight bytes over the read bandwidth. Many rows: two FMAs a cycle. Each product owns one
// 16-lane sum along K that is added up across its lanes at the end, so its bits depend on K alone; a lane's additions
// keep their order however K and the outputs are cut.
//
// Many rows: a stripe of outputs is widened to f32 for a span of K (at most 320 KiB, in the second cache level), and
// tiles of rows pass over it. A step of a tile loads kDenseRows + kDenseCols vectors for their product of FMAs. A span
// is cut into stretches, short enough for the rows of a tile to stay in the first cache level while the outputs stream
// by; between stretches and spans the sums wait in memory.
#pragma once

#include <cstdint>

#include "engine/backends/cpu/kernels/tier.h"

namespace sage::cpu::SAGE_TIER {

struct LoadF32 {
  using Type = float;
  static F At(const float* p) { return F::Load(p); }
};
struct LoadF16 {
  using Type = uint16_t;
  static F At(const uint16_t* p) { return F::Load(p, true); }
};
struct LoadBF16 {
  using Type = uint16_t;
  static F At(const uint16_t* p) { return F::Load(p, false); }
};

// Sixteen values from p on, zero past `count`.
template <class Loader>
inline F LoadPart(const typename Loader::Type* p, int64_t count) {
  typename Loader::Type some[16] = {};
  for (int64_t i = 0; i < count; ++i) some[i] = p[i];
  return Loader::At(some);
}

template <int NR>
inline void StoreDots(const F (&acc)[NR], const float* bias, int64_t n, float* out) {
  float sums[NR];
  if constexpr (NR == 4) {
    Sum4(acc, sums);
  } else {
    for (int j = 0; j < NR; ++j) sums[j] = Sum(acc[j]);
  }
  for (int j = 0; j < NR; ++j) out[n + j] = sums[j] + (bias == nullptr ? 0.0f : bias[n + j]);
}

// MR rows of x against NR rows of weights.
template <class Loader, int MR, int NR>
inline void DenseTile(const float* x, int64_t x_stride, int64_t K, const typename Loader::Type* w, const float* bias,
                      int64_t n, float* out, int64_t out_stride) {
  F acc[MR][NR];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
    for (int j = 0; j < NR; ++j) acc[m][j] = F::Zero();
  }
  const int64_t whole = K / 16 * 16;
  for (int64_t k = 0; k < whole; k += 16) {
    F weight[NR];
#pragma GCC unroll 8
    for (int j = 0; j < NR; ++j) {
      weight[j] = Loader::At(w + j * K + k);
      Prefetch(w + j * K + k + 512);
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const F value = F::Load(x + m * x_stride + k);
#pragma GCC unroll 8
      for (int j = 0; j < NR; ++j) acc[m][j] = Fma(value, weight[j], acc[m][j]);
    }
  }
  if (whole < K) {
#pragma GCC unroll 8
    for (int j = 0; j < NR; ++j) {
      const F weight = LoadPart<Loader>(w + j * K + whole, K - whole);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        acc[m][j] = Fma(LoadPart<LoadF32>(x + m * x_stride + whole, K - whole), weight, acc[m][j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) StoreDots<NR>(acc[m], bias, n, out + m * out_stride);
}

// The weights of NR outputs pass through the tiles of rows one after another while they are in the first cache level.
template <class Loader, int NR>
inline void DenseFew(const float* x, int64_t x_stride, int64_t M, int64_t K, const typename Loader::Type* w,
                     const float* bias, int64_t n, float* out, int64_t out_stride) {
  OverRows<kDenseRows>(0, M, [&]<int MR>(int64_t m) {
    DenseTile<Loader, MR, NR>(x + m * x_stride, x_stride, K, w + n * K, bias, n, out + m * out_stride, out_stride);
  });
}

// Inputs of a stretch and of a span, outputs of a stripe, rows whose sums wait together.
constexpr int64_t kDenseInputs = 1024, kDenseSpan = 2560, kDenseOutputs = 32, kDenseChunk = 192;

// A stretch of K of the outputs of a stripe in f32, [outputs / kDenseCols][steps of 16 inputs][kDenseCols][16], zero
// past the row's end and past the last output. Returns the end of what it wrote.
template <class Loader>
inline float* WidenStripe(const typename Loader::Type* w, int64_t K, int64_t k_begin, int64_t k_end, int64_t outputs,
                          float* wide) {
  const int64_t steps = (k_end - k_begin + 15) / 16;
  for (int64_t first = 0; first < outputs; first += kDenseCols) {
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t k = k_begin + s * 16, rest = k_end - k;
      for (int64_t j = first; j < first + kDenseCols; ++j, wide += 16) {
        const typename Loader::Type* from = w + j * K + k;
        if (j < outputs) Prefetch(from + 256);
        (j >= outputs ? F::Zero() : rest >= 16 ? Loader::At(from) : LoadPart<Loader>(from, rest)).Store(wide);
      }
    }
  }
  return wide;
}

// A stretch of MR rows against kDenseCols outputs: adds to `sums` [MR][kDenseCols][16] from zero or from what is there.
template <int MR>
inline void DenseStretch(const float* x, int64_t x_stride, int64_t inputs, const float* wide, bool first,
                         F (&acc)[MR][kDenseCols], const float* sums) {
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
    for (int j = 0; j < kDenseCols; ++j) acc[m][j] = first ? F::Zero() : F::Load(sums + (m * kDenseCols + j) * 16);
  }
  const int64_t whole = inputs / 16 * 16;
  for (const float* end = x + whole; x != end; x += 16, wide += kDenseCols * 16) {
    F weight[kDenseCols];
#pragma GCC unroll 8
    for (int j = 0; j < kDenseCols; ++j) {
      weight[j] = F::Load(wide + j * 16);
      Prefetch(wide + (kDenseCols * 8 + j) * 16);
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const F value = F::Load(x + m * x_stride);
#pragma GCC unroll 8
      for (int j = 0; j < kDenseCols; ++j) acc[m][j] = Fma(value, weight[j], acc[m][j]);
    }
  }
  if (whole < inputs) {
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const F value = LoadPart<LoadF32>(x + m * x_stride, inputs - whole);
#pragma GCC unroll 8
      for (int j = 0; j < kDenseCols; ++j) acc[m][j] = Fma(value, F::Load(wide + j * 16), acc[m][j]);
    }
  }
}

// Piece i of `pieces` nearly equal runs of whole steps in [begin, end): where it begins.
inline int64_t PieceOf(int64_t begin, int64_t end, int64_t i, int64_t pieces) {
  return i == pieces ? end : begin + (end - begin + 15) / 16 * i / pieces * 16;
}

// What a tile does with its sums after a stretch: they wait, or they are done.
template <int MR>
inline void LeaveSums(const F (&acc)[MR][kDenseCols], bool done, float* own, const float* bias, int64_t n,
                      int64_t outputs, float* out, int64_t out_stride) {
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
    if (done && outputs >= kDenseCols) {
      StoreDots<kDenseCols>(acc[i], bias, n, out + i * out_stride);
      continue;
    }
#pragma GCC unroll 8
    for (int c = 0; c < kDenseCols; ++c) {
      if (!done) {
        acc[i][c].Store(own + (i * kDenseCols + c) * 16);
      } else if (c < outputs) {
        out[i * out_stride + n + c] = Sum(acc[i][c]) + (bias == nullptr ? 0.0f : bias[n + c]);
      }
    }
  }
}

// Outputs [n, n + outputs) for rows [begin, end), at most kDenseOutputs and kDenseChunk of them.
template <class Loader>
inline void DenseStripe(const float* x, int64_t x_stride, int64_t begin, int64_t end, int64_t K,
                        const typename Loader::Type* w, int64_t n, int64_t outputs, const float* bias, float* out,
                        int64_t out_stride) {
  alignas(64) float wide[kDenseOutputs * kDenseSpan];
  alignas(64) float waiting[kDenseChunk * kDenseOutputs * 16];
  const int64_t spans = (K + kDenseSpan - 1) / kDenseSpan;
  for (int64_t span = 0; span < spans; ++span) {
    const int64_t s_begin = PieceOf(0, K, span, spans), s_end = PieceOf(0, K, span + 1, spans);
    const int64_t stretches = (s_end - s_begin + kDenseInputs - 1) / kDenseInputs;
    float* to = wide;
    for (int64_t i = 0; i < stretches; ++i) {
      to = WidenStripe<Loader>(w + n * K, K, PieceOf(s_begin, s_end, i, stretches),
                               PieceOf(s_begin, s_end, i + 1, stretches), outputs, to);
    }
    OverRows<kDenseRows>(begin, end, [&]<int MR>(int64_t m) {
      // Sums that only wait for the next stretch stay in the first cache level.
      float* const rows = waiting + (spans == 1 ? 0 : (m - begin) * kDenseOutputs * 16);
      const float* weights = wide;
      for (int64_t i = 0; i < stretches; ++i) {
        const int64_t k_begin = PieceOf(s_begin, s_end, i, stretches),
                      k_end = PieceOf(s_begin, s_end, i + 1, stretches);
        for (int64_t j = 0; j < outputs; j += kDenseCols) {
          float* own = rows + j * MR * 16;
          F acc[MR][kDenseCols];
          DenseStretch<MR>(x + m * x_stride + k_begin, x_stride, k_end - k_begin, weights, k_begin == 0, acc, own);
          LeaveSums<MR>(acc, k_end == K, own, bias, n + j, outputs - j, out + m * out_stride, out_stride);
          weights += (k_end - k_begin + 15) / 16 * kDenseCols * 16;
        }
      }
    });
  }
}

template <class Loader>
void Dense(const float* x, int64_t x_stride, int64_t M, int64_t K, const void* weights, int64_t n_begin, int64_t n_end,
           const float* bias, float* out, int64_t out_stride) {
  const auto* w = static_cast<const typename Loader::Type*>(weights);
  if (M > 2 * kDenseRows) {
    for (int64_t m = 0; m < M; m += kDenseChunk) {
      const int64_t end = M < m + kDenseChunk ? M : m + kDenseChunk;
      for (int64_t n = n_begin; n < n_end; n += kDenseOutputs) {
        const int64_t outputs = n_end - n < kDenseOutputs ? n_end - n : kDenseOutputs;
        DenseStripe<Loader>(x, x_stride, m, end, K, w, n, outputs, bias, out, out_stride);
      }
    }
    return;
  }
  int64_t n = n_begin;
  if (M == 1) {
    for (; n + 8 <= n_end; n += 8) DenseTile<Loader, 1, 8>(x, x_stride, K, w + n * K, bias, n, out, out_stride);
  }
  for (; n + kDenseCols <= n_end; n += kDenseCols) {
    DenseFew<Loader, kDenseCols>(x, x_stride, M, K, w, bias, n, out, out_stride);
  }
  for (; n < n_end; ++n) DenseFew<Loader, 1>(x, x_stride, M, K, w, bias, n, out, out_stride);
}

}  // namespace sage::cpu::SAGE_TIER
