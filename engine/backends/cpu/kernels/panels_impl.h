// Products with integer weights in panels of 16 outputs, for 16-bit and 8-bit activations.
//
// Floors. M = 1: the weight bytes over the read bandwidth. For 16 outputs x 4 inputs and one row that is 64 bytes of
// int8 (two widening loads, two dot instructions) or 32 bytes of nibbles (a widening load, a mask, a shift, two dots);
// with 8-bit activations 64 bytes are one dot and nibbles are two for 8 inputs. AVX2 does each of these on two
// registers, and an int16 dot is a multiplication and an addition. Many rows: the dot instructions alone, two a cycle.
//
// A tile is MR rows x NR panels of integer sums in registers; after each block of inputs they join the f32 sums of
// their rows. Up to kDirectRows rows decode the weights in registers; more rows share a wide copy of one block of
// weights (16 KiB) in the first cache level, and their f32 sums lie beside it. Integer sums are exact, so how they are
// cut changes no bit; the f32 expression of a product depends on its row and its weights alone.
#pragma once

#include <cstdint>

#include "engine/backends/cpu/kernels/panel_limits.h"
#include "engine/backends/cpu/kernels/tier.h"

namespace sage::cpu::SAGE_TIER {

// Weights are asked for about so many bytes of a panel before they are used: two streams of it hide a read of memory.
constexpr int64_t kPrefetchBytes = 3072;

// Forms of weights. A chunk of a block begins with a part of each sum and ends by leaving the sum; a second chain is
// joined to it. `Two` loads two steps; a step is 64 bytes of operand for 16 outputs and four bytes of activations.
struct Int8Wide {  // int8 pairs, int16 activations
  using Part = I;
  static constexpr int64_t kTwoBytes = 64, kChunk = 1 << 20;
  static constexpr bool kExpand = true, kCentred = false;
  static void Two(const uint8_t* p, W* first, W* second) {
    *first = W::FromI8(p);
    *second = W::FromI8(p + 32);
  }
  static I Step(const I& sum, const W& w, const W& x) { return Dot(sum, w, x); }
  static I Begin(const I& sum) { return sum; }
  static I End(const I&, const I& part) { return part; }
  static I Join(const I& sum, const I& part) { return Add(sum, part); }
};
struct NibblesWide : Int8Wide {  // nibble pairs, int16 activations
  static constexpr int64_t kTwoBytes = 32;
  static void Two(const uint8_t* p, W* first, W* second) { Nibbles32(p, first, second); }
};
struct ReadyWide : Int8Wide {  // what the two above become in a wide copy: codes without their bias
  static constexpr int64_t kTwoBytes = 128;
  static constexpr bool kCentred = true;
  static void Two(const uint8_t* p, W* first, W* second) {
    *first = W::Load(p);
    *second = W::Load(p + 64);
  }
};
struct Int8Quads : ReadyWide {  // codes + 128 of four inputs, int8 activations
  static constexpr bool kExpand = false, kCentred = false;
  static I Step(const I& sum, const W& w, const W& x) { return DotBytes(sum, w, x); }
};
struct ReadyQuads {  // codes 0..15 in bytes, int8 activations; exact for kChunk * 2 steps in a part
  using Part = NibbleSums;
  static constexpr int64_t kTwoBytes = 128, kChunk = NibbleSums::kSteps / 2;
  static constexpr bool kExpand = false, kCentred = false;
  static void Two(const uint8_t* p, W* first, W* second) { ReadyWide::Two(p, first, second); }
  static Part Step(const Part& sum, const W& w, const W& x) { return AddNibbles(sum, w, x); }
  static Part Begin(const I& sum) { return BeginNibbles(sum); }
  static I End(const I& sum, const Part& part) { return EndNibbles(sum, part); }
  static I Join(const I& sum, const Part& part) { return JoinNibbles(sum, part); }
};
struct NibbleQuads : ReadyQuads {  // nibbles of 4 + 4 inputs, int8 activations
  static constexpr int64_t kTwoBytes = 64;
  static constexpr bool kExpand = true;
  static void Two(const uint8_t* p, W* first, W* second) { Nibbles64(p, first, second); }
};

// Adds `count` pairs of steps to the sums; `second` may be `sums` itself. Asks for the weights `ahead` bytes further,
// if that is not 0.
template <class Form, int MR, int NR, bool kAsk>
inline void PanelSteps(const uint8_t* codes, int64_t w_stride, const uint8_t* a, int64_t row, int64_t count,
                       int64_t ahead, typename Form::Part (&sums)[MR][NR], typename Form::Part (&second_sums)[MR][NR]) {
  if constexpr (Form::kTwoBytes == 128 &&
                MR * NR > kFewSums) {  // operands as they are: the compiler keeps every sum in place
    for (const uint8_t* end = codes + count * 128; codes != end; codes += 64, a += 4) {
      W weights[NR];
#pragma GCC unroll 4
      for (int j = 0; j < NR; ++j) {
        weights[j] = W::Load(codes + j * w_stride);
        if constexpr (kAsk) Prefetch(codes + j * w_stride + ahead);
      }
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) {
        const W v = W::Four(a + m * row);
#pragma GCC unroll 4
        for (int j = 0; j < NR; ++j) sums[m][j] = Form::Step(sums[m][j], weights[j], v);
      }
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i, codes += Form::kTwoBytes, a += 8) {
    W first[NR], second[NR];
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) {
      Form::Two(codes + j * w_stride, &first[j], &second[j]);
      if constexpr (kAsk) {
        Prefetch(codes + j * w_stride + ahead);
        if constexpr (Form::kTwoBytes == 128) Prefetch(codes + j * w_stride + ahead + 64);
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      const W v = W::Four(a + m * row);
#pragma GCC unroll 4
      for (int j = 0; j < NR; ++j) sums[m][j] = Form::Step(sums[m][j], first[j], v);
    }
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      const W v = W::Four(a + m * row + 4);
#pragma GCC unroll 4
      for (int j = 0; j < NR; ++j) second_sums[m][j] = Form::Step(second_sums[m][j], second[j], v);
    }
  }
}

// Adds one chunk of a block to the integer sums.
template <class Form, int MR, int NR, bool kAsk>
inline void PanelChunk(const uint8_t* codes, int64_t w_stride, const uint8_t* a, int64_t row, int64_t count,
                       int64_t ahead, I (&dots)[MR][NR]) {
  using Part = typename Form::Part;
  // Few sums would wait for themselves: two chains each.
  constexpr bool kTwoChains = MR * NR <= kFewSums;
  Part part[MR][NR], other[MR][NR];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) {
      part[m][j] = Form::Begin(dots[m][j]);
      other[m][j] = Part::Zero();
    }
  }
  PanelSteps<Form, MR, NR, kAsk>(codes, w_stride, a, row, count, ahead, part, kTwoChains ? other : part);
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) {
      dots[m][j] = Form::End(dots[m][j], part[m][j]);
      if constexpr (kTwoChains) dots[m][j] = Form::Join(dots[m][j], other[m][j]);
    }
  }
}

// What a block of NR panels is multiplied with, in f32; `offset` is null without one.
template <int NR>
struct Factors {
  alignas(64) float scales[NR * 16];
  alignas(64) float offsets[NR * 16];
};
template <int NR>
inline void LoadFactors(const PanelWeights& w, int64_t panel, int64_t group, Factors<NR>* to) {
  for (int j = 0; j < NR; ++j) {
    const int64_t at = ((panel + j) * w.groups + group) * 16;
    const auto load = [&](const void* from) {
      return w.half ? F::Load(static_cast<const uint16_t*>(from) + at, true)
                    : F::Load(static_cast<const float*>(from) + at);
    };
    load(w.scale).Store(to->scales + j * 16);
    if (w.offset != nullptr) load(w.offset).Store(to->offsets + j * 16);
  }
}

// Where the weights lie that a tile of NR panels reads somewhat later: in its panels, or in those of the next tile.
template <int NR>
struct Ahead {
  Ahead(const PanelWeights& w, int64_t block_bytes) : block_bytes(block_bytes) {
    blocks = (kPrefetchBytes + block_bytes - 1) / block_bytes;
    if (blocks > w.blocks) blocks = w.blocks;
    groups = (blocks + w.blocks_per_group - 1) / w.blocks_per_group;
  }
  // From block b of a panel.
  int64_t Bytes(const PanelWeights& w, int64_t b) const {
    return (blocks + (b + blocks < w.blocks ? 0 : (NR - 1) * w.blocks)) * block_bytes;
  }
  void AskForFactors(const PanelWeights& w, int64_t panel, int64_t group) const {
    const int64_t later = group + groups + (group + groups < w.groups ? 0 : (NR - 1) * w.groups);
    const int64_t size = w.half ? 32 : 64, at = (panel * w.groups + later) * size;
    for (int j = 0; j < NR; ++j) {
      Prefetch(static_cast<const uint8_t*>(w.scale) + at + j * w.groups * size);
      if (w.offset != nullptr) Prefetch(static_cast<const uint8_t*>(w.offset) + at + j * w.groups * size);
    }
  }

  int64_t block_bytes, blocks, groups;
};

// One block of inputs: MR rows from m0 against NR panels that lie `w_stride` bytes apart, added to the rows' f32 sums
// [MR][NR][16].
template <class Form, int MR, int NR, bool kAsk>
inline void PanelBlock(const uint8_t* codes, int64_t w_stride, const QuantizedRows& x, int64_t m0, int64_t b,
                       const PanelWeights& w, int64_t panel, const Factors<NR>& factors, int64_t ahead, float* sums) {
  const int64_t at = b * x.M + m0;
  const uint8_t* const a = x.codes + at * x.row_bytes;
  const int64_t pairs = x.row_bytes / 8;
  I dots[MR][NR];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    I first = I::Zero();
    if constexpr (!Form::kCentred) first = I::Set1(-w.bias * x.sum[at + m]);
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) dots[m][j] = first;
  }
  if constexpr (Form::kChunk >= kLongestBlock) {
    PanelChunk<Form, MR, NR, kAsk>(codes, w_stride, a, x.row_bytes, pairs, ahead, dots);
  } else {
    for (int64_t i = 0; i < pairs; i += Form::kChunk) {
      const int64_t count = pairs - i < Form::kChunk ? pairs - i : Form::kChunk;
      PanelChunk<Form, MR, NR, kAsk>(codes + i * Form::kTwoBytes, w_stride, a + i * 8, x.row_bytes, count, ahead, dots);
    }
  }
  if constexpr (!Form::kCentred) {
    if (w.shift != nullptr) {
      for (int j = 0; j < NR; ++j) {
        const I shift = I::Load(w.shift + ((panel + j) * w.blocks + b) * 16);
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m) dots[m][j] = Add(dots[m][j], shift);
      }
    }
  }
  F scale[NR];
#pragma GCC unroll 4
  for (int j = 0; j < NR; ++j) scale[j] = Pinned(F::Load(factors.scales + j * 16));
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    const F step = F::Set1(x.scale[at + m]);
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) {
      float* own = sums + (m * NR + j) * 16;
      Fma(ToFloat(dots[m][j]), Mul(scale[j], step), F::Load(own)).Store(own);
    }
  }
  if (w.offset == nullptr) return;
    // sum x w: the offset meets the sum of the block's inputs.
#pragma GCC unroll 4
  for (int j = 0; j < NR; ++j) scale[j] = Pinned(F::Load(factors.offsets + j * 16));
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    const F total = F::Set1(x.total[at + m]);
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) {
      float* own = sums + (m * NR + j) * 16;
      Fma(scale[j], total, F::Load(own)).Store(own);
    }
  }
}

inline void StoreOutputs(F sums, int64_t n, int64_t N, const float* bias, float* row) {
  if (bias == nullptr && n + 16 <= N) return sums.Store(row + n);
  float values[16];
  sums.Store(values);
  for (int64_t i = 0; i < 16 && n + i < N; ++i) row[n + i] = values[i] + (bias == nullptr ? 0.0f : bias[n + i]);
}

// All blocks of MR rows, the weights decoded in registers.
template <class Form, int MR, int NR>
inline void DirectTile(const QuantizedRows& x, int64_t m0, const PanelWeights& w, int64_t panel, int64_t N,
                       const float* bias, float* out, int64_t out_stride) {
  alignas(64) float sums[MR * NR * 16] = {};
  Factors<NR> factors = {};
  const int64_t block_bytes = x.row_bytes / 8 * Form::kTwoBytes, panel_bytes = w.blocks * block_bytes;
  const uint8_t* codes = w.codes + panel * panel_bytes;
  const Ahead<NR> ahead(w, block_bytes);
  for (int64_t b = 0, group = 0; b < w.blocks; ++group) {
    LoadFactors<NR>(w, panel, group, &factors);
    ahead.AskForFactors(w, panel, group);
    const int64_t end = b + w.blocks_per_group < w.blocks ? b + w.blocks_per_group : w.blocks;
    for (; b < end; ++b, codes += block_bytes) {
      PanelBlock<Form, MR, NR, true>(codes, panel_bytes, x, m0, b, w, panel, factors, ahead.Bytes(w, b), sums);
    }
  }
  for (int m = 0; m < MR; ++m) {
    for (int j = 0; j < NR; ++j) {
      StoreOutputs(F::Load(sums + (m * NR + j) * 16), (panel + j) * 16, N, bias, out + (m0 + m) * out_stride);
    }
  }
}

// Rows that share a wide copy of the weights: with their f32 sums (8 KiB) and their inputs it fits the first cache
// level.
constexpr int64_t kChunkRows = 128 / kPanelCols;

template <class Ready>
inline W Centre(const W& codes, int bias) {
  if constexpr (Ready::kCentred) return LessInt16(codes, bias);
  return codes;
}

template <class Form, class Ready, int NR>
inline void BlockedRows(const QuantizedRows& x, int64_t begin, int64_t end, const PanelWeights& w, int64_t panel,
                        int64_t N, const float* bias, float* out, int64_t out_stride) {
  alignas(64) uint8_t wide[Form::kExpand ? NR * kLongestBlock * 32 : 64];
  alignas(64) float sums[kChunkRows * NR * 16];
  Factors<NR> factors = {};
  for (int64_t i = 0; i < (end - begin) * NR * 16; i += 16) F::Zero().Store(sums + i);
  const int64_t twos = x.row_bytes / 8, block_bytes = twos * Form::kTwoBytes, panel_bytes = w.blocks * block_bytes;
  for (int64_t b = 0; b < w.blocks; ++b) {
    const uint8_t* codes = w.codes + panel * panel_bytes + b * block_bytes;
    int64_t stride = panel_bytes;
    if constexpr (Form::kExpand) {
      stride = twos * 128;
      for (int j = 0; j < NR; ++j) {
        for (int64_t i = 0; i < twos; ++i) {
          W first, second;
          Form::Two(codes + j * panel_bytes + i * Form::kTwoBytes, &first, &second);
          Prefetch(codes + j * panel_bytes + i * Form::kTwoBytes + kPrefetchBytes);
          Centre<Ready>(first, w.bias).Store(wide + j * stride + i * 128);
          Centre<Ready>(second, w.bias).Store(wide + j * stride + i * 128 + 64);
        }
      }
      codes = wide;
    }
    LoadFactors<NR>(w, panel, b / w.blocks_per_group, &factors);
    OverRows<kPanelRows>(begin, end, [&]<int MR>(int64_t m0) {
      PanelBlock<Ready, MR, NR, false>(codes, stride, x, m0, b, w, panel, factors, 0, sums + (m0 - begin) * NR * 16);
    });
  }
  for (int64_t m = begin; m < end; ++m) {
    for (int j = 0; j < NR; ++j) {
      StoreOutputs(F::Load(sums + ((m - begin) * NR + j) * 16), (panel + j) * 16, N, bias, out + m * out_stride);
    }
  }
}

template <class Form, class Ready, int NR>
inline int64_t PanelRange(const QuantizedRows& x, const PanelWeights& w, int64_t p_begin, int64_t p_end, int64_t N,
                          const float* bias, float* out, int64_t out_stride) {
  const int64_t tiles_end = p_begin + (p_end - p_begin) / NR * NR;
  if (x.M <= kDirectRows) {
    for (int64_t p = p_begin; p < tiles_end; p += NR) {
      OverRows<kPanelRows>(0, x.M,
                           [&]<int MR>(int64_t m) { DirectTile<Form, MR, NR>(x, m, w, p, N, bias, out, out_stride); });
    }
    return tiles_end;
  }
  // Some rows against all panels: their activations stay in the second cache level.
  for (int64_t m = 0; m < x.M; m += kChunkRows) {
    const int64_t end = x.M < m + kChunkRows ? x.M : m + kChunkRows;
    for (int64_t p = p_begin; p < tiles_end; p += NR) {
      BlockedRows<Form, Ready, NR>(x, m, end, w, p, N, bias, out, out_stride);
    }
  }
  return tiles_end;
}

template <class Form, class Ready>
inline void PanelForm(const QuantizedRows& x, const PanelWeights& w, int64_t p_begin, int64_t p_end, int64_t N,
                      const float* bias, float* out, int64_t out_stride) {
  int64_t p = p_begin;
  if (x.M == 1) {
    for (; p + kDecodeCols <= p_end; p += kDecodeCols) {
      DirectTile<Form, 1, kDecodeCols>(x, 0, w, p, N, bias, out, out_stride);
    }
  } else {
    p = PanelRange<Form, Ready, kPanelCols>(x, w, p, p_end, N, bias, out, out_stride);
  }
  if (p < p_end) PanelRange<Form, Ready, 1>(x, w, p, p_end, N, bias, out, out_stride);
}

void Panels(const QuantizedRows& x, const PanelWeights& w, int64_t p_begin, int64_t p_end, int64_t N, const float* bias,
            float* out, int64_t out_stride) {
  switch (w.layout) {
    case PanelLayout::kInt8Pairs:
      return PanelForm<Int8Wide, ReadyWide>(x, w, p_begin, p_end, N, bias, out, out_stride);
    case PanelLayout::kNibblePairs:
      return PanelForm<NibblesWide, ReadyWide>(x, w, p_begin, p_end, N, bias, out, out_stride);
    case PanelLayout::kInt8Quads:
      return PanelForm<Int8Quads, Int8Quads>(x, w, p_begin, p_end, N, bias, out, out_stride);
    case PanelLayout::kNibbleQuads:
      return PanelForm<NibbleQuads, ReadyQuads>(x, w, p_begin, p_end, N, bias, out, out_stride);
  }
}

}  // namespace sage::cpu::SAGE_TIER
