// Attention over KV pages with matrix products on registers: keys and values go from the page to the fragments of
// mma.m16n8k16 without shared memory.
//
// A warp holds 16 queries as the 16 rows of the product and walks over chunks of 16 positions. Which input a column of
// a fragment stands for is free as long as both operands agree, so each lane takes consecutive bytes of a position: for
// scores, lane (g, t) = (lane / 4, lane % 4) loads 16 bytes of position g at a time, which are the t-th quarter of the
// dims of one or more products; for values it loads the g-th eighth of the dims of positions 2t, 2t + 1, 2t + 8, 2t
// + 9. 8-bit codes become f16 (kv_codes.h) with q normalised by a power of two; the scale of a key multiplies its
// score, the scale of a value its weight, and the running maximum is that of the weights with it, so weights fit an
// f16. bf16 and f32 run in bf16 with what rounding loses of q, of the weights (and of f32 keys and values) in a second
// product.
#pragma once

#include "engine/backends/cuda/kernels/attention_args.h"
#include "engine/backends/cuda/kv_codes.h"

namespace sage::cuda {

template <KvStore kStore, int kD>
struct AttentionWarp {
  static constexpr bool kBytes = IsByteStore(kStore), kHalves = kStore == KvStore::kF32;
  static constexpr int kElement = StoreBytes(kStore), kRun = 16 / kElement;  // dims in 16 bytes
  static constexpr int kSteps = kD / 16, kPer = kRun / 4;                    // products; products of a run
  static constexpr int kRuns = kD / (4 * kRun);                              // runs of a lane in a position
  static constexpr int kLaneDims = kD / 8;                                   // dims of values of a lane
  static constexpr int kValueWords = kLaneDims * kElement / 4;

  const AttentionKernelArgs& a;
  PlacedSlice slice;
  int32_t head, first_query, queries;  // of this warp
  int32_t last;                        // position of the item's last query: nothing behind it is read
  int lane, g, t;
  uint32_t* fragments;  // [kSteps][32][4], for two-part q a second such array behind
  float row_factor[2];  // of rows g and g + 8
  int32_t row_position[2];
  float reference[2];  // scores of rows g and g + 8 with the first key of the page, kFp8
  float top[2], weight[2];
  float sums[kD / 8][4];

  static SAGE_DEVICE int DimOf(int step, int quarter) {
    return step / kPer * 4 * kRun + quarter * kRun + 4 * (step % kPer);
  }

  SAGE_DEVICE void LoadQueries() {
    const float* rows[2];
    SAGE_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int32_t query = first_query + g + 8 * r;
      const bool real = g + 8 * r < queries;
      const int32_t row = slice.row_begin + query / a.group;
      rows[r] = real ? a.q + row * a.q_stride + (head * a.group + query % a.group) * a.D : nullptr;
      row_position[r] = real ? slice.context + query / a.group : -1;
      float most = 0;
      if (kBytes) {
        for (int s = 0; s < kSteps; ++s) {
          for (int e = 0; e < 4; ++e) most = fmaxf(most, fabsf(At(rows[r], DimOf(s, t) + e)));
        }
        most = fmaxf(most, ShuffleXor(most, 1));
        most = fmaxf(most, ShuffleXor(most, 2));
      }
      const uint32_t exponent = BitsOf(most) >> 23;
      const bool scaled = exponent > 0 && exponent < 254;
      const float inverse = scaled ? FloatOf((254 - exponent) << 23) : 1.0f;
      row_factor[r] = a.score_factor * a.code.factor * (scaled ? FloatOf(exponent << 23) : 1.0f);
      for (int s = 0; s < kSteps; ++s) {
        float x[4];
        for (int e = 0; e < 4; ++e) x[e] = At(rows[r], DimOf(s, t) + e) * inverse;
        uint32_t* const to = fragments + (s * 32 + lane) * 4 + r;
        if constexpr (kBytes) {
          to[0] = PackF16(x[0], x[1]);
          to[2] = PackF16(x[2], x[3]);
        } else {
          SplitPair(x[0], x[1], to[0], to[kSteps * 128]);
          SplitPair(x[2], x[3], to[2], to[kSteps * 128 + 2]);
        }
      }
      top[r] = -INFINITY;
      weight[r] = 0;
    }
    SAGE_UNROLL
    for (int i = 0; i < kD / 8; ++i) {
      for (int e = 0; e < 4; ++e) sums[i][e] = 0;
    }
    SyncWarp();
  }
  SAGE_DEVICE float At(const float* row, int dim) const { return row != nullptr && dim < a.D ? row[dim] : 0.0f; }

  // Two floats as bf16, and what that lost.
  static SAGE_DEVICE void SplitPair(float x, float y, uint32_t& high, uint32_t& low) {
    high = PackBf16(x, y);
    low = PackBf16(x - FloatOf(high << 16), y - FloatOf(high & 0xffff0000u));
  }

  struct Keys {
    uint4 runs[2][kRuns];  // positions g and 8 + g
  };
  struct Values {
    uint32_t words[4][kValueWords];  // positions 2t, 2t + 1, 2t + 8, 2t + 9
  };

  SAGE_DEVICE const uint8_t* PageOf(int32_t position, int32_t second) const {
    const int32_t entry = PageEntry(position / a.page_tokens, a.sink_pages) + second;
    return a.arena + a.pages[slice.pages + entry] * a.offsets.page;
  }
  SAGE_DEVICE bool InSink(int32_t position) const { return kBytes && position / a.page_tokens < a.sink_pages; }

  SAGE_DEVICE void LoadKeys(int32_t position, Keys& keys) const {
    const uint8_t* const at = PageOf(position, 0) + head * a.offsets.head +
                              static_cast<int64_t>(position % a.page_tokens + g) * a.Dp * kElement + t * 16;
    SAGE_UNROLL
    for (int r = 0; r < kRuns; ++r) {
      const bool inside = (r * 4 + t) * kRun < a.Dp;
      keys.runs[0][r] = inside ? LoadOnce16(at + r * 64) : uint4{0, 0, 0, 0};
      keys.runs[1][r] = inside ? LoadOnce16(at + 8 * a.Dp * kElement + r * 64) : uint4{0, 0, 0, 0};
    }
  }

  SAGE_DEVICE void LoadValues(int32_t position, Values& values) const {
    const uint8_t* const at = PageOf(position, 0) + head * a.offsets.head + a.offsets.v +
                              (static_cast<int64_t>(position % a.page_tokens) * a.Dp + g * kLaneDims) * kElement;
    SAGE_UNROLL
    for (int p = 0; p < 4; ++p) {
      const int offset = 2 * t + p % 2 + 8 * (p / 2);
      const bool inside = g * kLaneDims < a.Dp && position + offset <= last;
      if constexpr (kValueWords >= 4) {
        SAGE_UNROLL
        for (int w = 0; w < kValueWords; w += 4) {
          const uint4 four =
              inside ? LoadOnce16(at + static_cast<int64_t>(offset) * a.Dp * kElement + w * 4) : uint4{0, 0, 0, 0};
          values.words[p][w] = four.x;
          values.words[p][w + 1] = four.y;
          values.words[p][w + 2] = four.z;
          values.words[p][w + 3] = four.w;
        }
      } else {
        const uint2 two =
            inside ? *reinterpret_cast<const uint2*>(at + static_cast<int64_t>(offset) * a.Dp * kElement) : uint2{0, 0};
        values.words[p][0] = two.x;
        values.words[p][1] = two.y;
      }
    }
  }

  SAGE_DEVICE void QueryFragment(int step, int second, uint32_t (&q)[4]) const {
    const uint4 four = *reinterpret_cast<const uint4*>(fragments + ((second * kSteps + step) * 32 + lane) * 4);
    q[0] = four.x;
    q[1] = four.y;
    q[2] = four.z;
    q[3] = four.w;
  }
  static SAGE_DEVICE uint32_t Word(const uint4& four, int i) {
    return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
  }

  // scores[j][i]: query row g + 8 (i / 2), position 8 j + 2 t + i % 2.
  SAGE_DEVICE void Scores(const Keys& keys, float (&scores)[2][4]) const {
    SAGE_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      uint32_t q[4], q_low[4];
      QueryFragment(s, 0, q);
      if constexpr (!kBytes) QueryFragment(s, 1, q_low);
      SAGE_UNROLL
      for (int j = 0; j < 2; ++j) {
        const uint4& run = keys.runs[j][s / kPer];
        if constexpr (kBytes) {
          uint32_t b0, b1;
          CodesToF16<kStore>(Word(run, s % kPer), a.code, b0, b1);
          MmaF16(scores[j], q, b0, b1);
        } else if constexpr (kHalves) {
          uint32_t b0, b1, low0, low1;
          SplitPair(FloatOf(run.x), FloatOf(run.y), b0, low0);
          SplitPair(FloatOf(run.z), FloatOf(run.w), b1, low1);
          MmaBf16(scores[j], q_low, b0, b1);
          MmaBf16(scores[j], q, low0, low1);
          MmaBf16(scores[j], q, b0, b1);
        } else {
          const uint32_t b0 = Word(run, 2 * (s % kPer)), b1 = Word(run, 2 * (s % kPer) + 1);
          MmaBf16(scores[j], q_low, b0, b1);
          MmaBf16(scores[j], q, b0, b1);
        }
      }
    }
  }
  // Scores with the first key of the page of `position`: every column of the product is that key.
  SAGE_DEVICE void ReferenceScores(int32_t position) {
    const auto* const key =
        reinterpret_cast<const uint16_t*>(PageOf(position, 0) + head * a.offsets.head + a.offsets.k_reference);
    float found[4] = {};
    SAGE_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      uint32_t q[4];
      QueryFragment(s, 0, q);
      const int dim = DimOf(s, t);
      const uint2 two = dim < a.Dp ? *reinterpret_cast<const uint2*>(key + dim) : uint2{0, 0};
      MmaF16(found, q, two.x, two.y);
    }
    const float undo = 1.0f / a.code.factor;  // as in Walk for sinks
    reference[0] = found[0] * row_factor[0] * undo;
    reference[1] = found[2] * row_factor[1] * undo;
  }
  // The same from f16 pages.
  SAGE_DEVICE void SinkScores(int32_t position, float (&scores)[2][4]) const {
    const auto* const at = reinterpret_cast<const uint16_t*>(PageOf(position, 0) + head * a.offsets.sink_head) +
                           (position % a.page_tokens + g) * a.Dp;
    for (int s = 0; s < kSteps; ++s) {
      uint32_t q[4];
      QueryFragment(s, 0, q);
      for (int j = 0; j < 2; ++j) {
        const int dim = DimOf(s, t);
        const uint2 two = dim < a.Dp ? *reinterpret_cast<const uint2*>(at + 8 * j * a.Dp + dim) : uint2{0, 0};
        MmaF16(scores[j], q, two.x, two.y);
      }
    }
  }

  // Scores become weights under the new maximum; what was summed before shrinks accordingly. `values` [j][2] are the
  // scales of the values.
  SAGE_DEVICE void Weigh(int32_t position, const float (&keys)[2][2], const float (&values)[2][2],
                         float (&scores)[2][4]) {
    float next[2] = {top[0], top[1]};
    bool seen[2][4];
    SAGE_UNROLL
    for (int j = 0; j < 2; ++j) {
      SAGE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int r = i / 2;
        const int32_t at = position + 8 * j + 2 * t + i % 2;
        seen[j][i] = at <= row_position[r] && (a.window == 0 || at > row_position[r] - a.window);
        const float scale = keys[j][i % 2];
        scores[j][i] *= row_factor[r] * (kStore == KvStore::kFp8 ? fabsf(scale) : scale);
        if (kStore == KvStore::kFp8 && scale < 0) scores[j][i] += reference[r];
        const float with = kBytes ? scores[j][i] + Log2(values[j][i % 2]) : scores[j][i];
        if (seen[j][i]) next[r] = fmaxf(next[r], with);
      }
    }
    float shrink[2];
    SAGE_UNROLL
    for (int r = 0; r < 2; ++r) {
      next[r] = fmaxf(next[r], ShuffleXor(next[r], 1));
      next[r] = fmaxf(next[r], ShuffleXor(next[r], 2));
      shrink[r] = next[r] == top[r] ? 1.0f : Exp2(top[r] - next[r]);
      top[r] = next[r];
      weight[r] *= shrink[r];
    }
    SAGE_UNROLL
    for (int j = 0; j < 2; ++j) {
      SAGE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float p = seen[j][i] ? Exp2(scores[j][i] - top[i / 2]) : 0.0f;
        weight[i / 2] += p;
        scores[j][i] = kBytes && seen[j][i] ? p * values[j][i % 2] : p;
      }
    }
    if (AnyLane(shrink[0] != 1.0f || shrink[1] != 1.0f)) {
      SAGE_UNROLL
      for (int i = 0; i < kD / 8; ++i) {
        sums[i][0] *= shrink[0];
        sums[i][1] *= shrink[0];
        sums[i][2] *= shrink[1];
        sums[i][3] *= shrink[1];
      }
    }
  }

  // The weights as the left operand: their layout is already that of its 16 x 16 fragment.
  static SAGE_DEVICE void WeightFragment(const float (&p)[2][4], uint32_t (&high)[4], uint32_t (&low)[4]) {
    SAGE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float x = p[i / 2][2 * (i % 2)], y = p[i / 2][2 * (i % 2) + 1];
      if constexpr (kBytes) {
        high[i] = PackF16(x, y);
      } else {
        SplitPair(x, y, high[i], low[i]);
      }
    }
  }

  SAGE_DEVICE void AddValues(const float (&p)[2][4], const Values& values) {
    uint32_t high[4], low[4];
    WeightFragment(p, high, low);
    SAGE_UNROLL
    for (int w = 0; w < kValueWords; ++w) {
      const uint32_t v0 = values.words[0][w], v1 = values.words[1][w], v2 = values.words[2][w], v3 = values.words[3][w];
      if constexpr (kBytes) {
        uint32_t b0[4], b1[4];
        CodesToF16<kStore>(BytePermute(v0, v1, 0x5140), a.code, b0[0], b0[1]);
        CodesToF16<kStore>(BytePermute(v0, v1, 0x7362), a.code, b0[2], b0[3]);
        CodesToF16<kStore>(BytePermute(v2, v3, 0x5140), a.code, b1[0], b1[1]);
        CodesToF16<kStore>(BytePermute(v2, v3, 0x7362), a.code, b1[2], b1[3]);
        SAGE_UNROLL
        for (int e = 0; e < 4; ++e) MmaF16(sums[4 * w + e], high, b0[e], b1[e]);
      } else if constexpr (kHalves) {
        uint32_t b0, b1, low0, low1;
        SplitPair(FloatOf(v0), FloatOf(v1), b0, low0);
        SplitPair(FloatOf(v2), FloatOf(v3), b1, low1);
        MmaBf16(sums[w], low, b0, b1);
        MmaBf16(sums[w], high, low0, low1);
        MmaBf16(sums[w], high, b0, b1);
      } else {
        SAGE_UNROLL
        for (int e = 0; e < 2; ++e) {
          const uint32_t b0 = BytePermute(v0, v1, e == 0 ? 0x5410 : 0x7632);
          const uint32_t b1 = BytePermute(v2, v3, e == 0 ? 0x5410 : 0x7632);
          MmaBf16(sums[2 * w + e], low, b0, b1);
          MmaBf16(sums[2 * w + e], high, b0, b1);
        }
      }
    }
  }
  SAGE_DEVICE void AddSinkValues(int32_t position, const float (&p)[2][4]) {
    uint32_t high[4], low[4];
    WeightFragment(p, high, low);
    const auto* const at = reinterpret_cast<const uint16_t*>(PageOf(position, 1) + head * a.offsets.sink_head) +
                           position % a.page_tokens * a.Dp + g * kLaneDims;
    for (int i = 0; i < kLaneDims; i += 2) {
      uint32_t v[4];
      for (int e = 0; e < 4; ++e) {
        const int offset = 2 * t + e % 2 + 8 * (e / 2);
        const bool inside = g * kLaneDims < a.Dp && position + offset <= last;
        v[e] = inside ? *reinterpret_cast<const uint32_t*>(at + offset * a.Dp + i) : 0;
      }
      MmaF16(sums[i], high, BytePermute(v[0], v[1], 0x5410), BytePermute(v[2], v[3], 0x5410));
      MmaF16(sums[i + 1], high, BytePermute(v[0], v[1], 0x7632), BytePermute(v[2], v[3], 0x7632));
    }
  }

  SAGE_DEVICE void LoadScales(int32_t position, int64_t plane, float (&scales)[2][2]) const {
    const auto* const at = reinterpret_cast<const float*>(PageOf(position, 0) + head * a.offsets.head + plane) +
                           position % a.page_tokens + 2 * t;
    SAGE_UNROLL
    for (int j = 0; j < 2; ++j) {
      const float2 two = *reinterpret_cast<const float2*>(at + 8 * j);
      scales[j][0] = two.x;
      scales[j][1] = two.y;
    }
  }

  // Chunks first, first + step, ... below end.
  SAGE_DEVICE void Walk(int32_t first, int32_t end, int32_t step) {
    Keys keys;
    int32_t page = -1;  // that `reference` belongs to
    if (first < end && !InSink(first * kChunk)) LoadKeys(first * kChunk, keys);
    for (int32_t chunk = first; chunk < end; chunk += step) {
      const int32_t position = chunk * kChunk;
      float scores[2][4] = {}, k_scale[2][2] = {{1, 1}, {1, 1}}, v_scale[2][2] = {{1, 1}, {1, 1}};
      if (InSink(position)) {
        // f16 values carry no factor of a shifted code; row_factor has it.
        const float undo = 1.0f / a.code.factor;
        for (int j = 0; j < 2; ++j) k_scale[j][0] = k_scale[j][1] = undo;
        SinkScores(position, scores);
        for (int j = 0; j < 2; ++j) v_scale[j][0] = v_scale[j][1] = undo;
        Weigh(position, k_scale, v_scale, scores);
        AddSinkValues(position, scores);
        if (chunk + step < end && !InSink((chunk + step) * kChunk)) LoadKeys((chunk + step) * kChunk, keys);
        continue;
      }
      if constexpr (kStore == KvStore::kFp8) {  // before the values take registers
        if (position / a.page_tokens != page) ReferenceScores(position);
        page = position / a.page_tokens;
      }
      Values values;
      if constexpr (!kHalves) LoadValues(position, values);
      if constexpr (kBytes) LoadScales(position, a.offsets.k_scale, k_scale);
      if constexpr (kBytes) LoadScales(position, a.offsets.v_scale, v_scale);
      Scores(keys, scores);
      if (chunk + step < end) LoadKeys((chunk + step) * kChunk, keys);
      Weigh(position, k_scale, v_scale, scores);
      if constexpr (kHalves) LoadValues(position, values);
      AddValues(scores, values);
    }
    SAGE_UNROLL
    for (int r = 0; r < 2; ++r) {
      weight[r] += ShuffleXor(weight[r], 1);
      weight[r] += ShuffleXor(weight[r], 2);
    }
  }

  // Rows of {sums [kD], maximum, weight} into shared memory.
  SAGE_DEVICE void Leave(float* to) const {
    constexpr int kStride = kD + 4;
    SAGE_UNROLL
    for (int i = 0; i < kD / 8; ++i) {
      SAGE_UNROLL
      for (int e = 0; e < 4; ++e) to[(g + 8 * (e / 2)) * kStride + (2 * t + e % 2) * kLaneDims + i] = sums[i][e];
    }
    if (t != 0) return;
    for (int r = 0; r < 2; ++r) {
      to[(g + 8 * r) * kStride + kD] = top[r];
      to[(g + 8 * r) * kStride + kD + 1] = weight[r];
    }
  }
};

// Grid: [items, kv heads, parts]; 128 threads.
template <KvStore kStore, int kD>
SAGE_KERNEL(128, IsByteStore(kStore) ? 3 : 2)
void AttentionKernel(const AttentionKernelArgs a) {
  const AttentionItem item = a.items[blockIdx.x];
  const auto split = static_cast<int32_t>(blockIdx.z), head = static_cast<int32_t>(blockIdx.y);
  if (item.queries == 0 || split >= item.splits) return;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const PlacedSlice slice = a.slices[item.slice];
  constexpr int kWarpBytes = AttentionSharedBytes(kStore, kD) / 4, kStride = kD + 4;
  uint8_t* const shared = SharedMemory();

  const int32_t last = slice.context + (item.query + item.queries - 1) / a.group;
  const int32_t begin = a.window > 0 ? slice.context + item.query / a.group + 1 - a.window : 0;
  int32_t low = split * item.part, high = low + item.part;
  if (low < begin) low = begin;
  if (high > last + 1) high = last + 1;
  {
    const int32_t first_query = item.query + (item.spread != 0 ? 0 : 16 * warp);
    AttentionWarp<kStore, kD> state{a,    slice, head,     first_query, item.query + item.queries - first_query,
                                    last, lane,  lane / 4, lane % 4,    nullptr};
    state.fragments = reinterpret_cast<uint32_t*>(shared + warp * kWarpBytes);
    state.LoadQueries();
    const int32_t first = low / kChunk, end = low < high ? (high + kChunk - 1) / kChunk : first;
    if (state.queries > 0) state.Walk(first + (item.spread != 0 ? warp : 0), end, item.spread != 0 ? 4 : 1);
    SyncThreads();
    state.Leave(reinterpret_cast<float*>(shared + warp * kWarpBytes));
  }
  SyncThreads();
  // Warps that shared queries are added up in order.
  const int sources = item.spread != 0 ? 4 : 1;
  const int32_t rows = ItemRows(item);
  const float* const left = reinterpret_cast<const float*>(shared);
  for (int row = warp; row < rows && row < item.queries; row += 4) {
    const int first = item.spread != 0 ? 0 : row / 16, at = row % 16 * kStride;
    float top = -INFINITY, weight = 0;
    for (int s = first; s < first + sources; ++s) top = fmaxf(top, left[s * (kWarpBytes / 4) + at + kD]);
    float factor[4] = {0, 0, 0, 0};
    for (int s = 0; s < sources; ++s) {
      const float* const from = left + (first + s) * (kWarpBytes / 4) + at;
      factor[s] = from[kD] == top ? 1.0f : Exp2(from[kD] - top);
      weight += factor[s] * from[kD + 1];
    }
    const int32_t query = item.query + row, batch_row = slice.row_begin + query / a.group;
    float* const out = a.out + batch_row * a.out_stride + (head * a.group + query % a.group) * a.D;
    float* const state =
        a.states + (static_cast<int64_t>(item.state) + (head * item.splits + split) * rows + row) * (kD + 2);
    for (int d = lane; d < kD; d += 32) {
      float sum = 0;
      for (int s = 0; s < sources; ++s) sum += factor[s] * left[(first + s) * (kWarpBytes / 4) + at + d];
      if (item.splits > 1) {
        state[d] = sum;
      } else if (d < a.D) {
        out[d] = sum / weight * a.code.factor;
      }
    }
    if (item.splits > 1 && lane == 0) {
      state[kD] = top;
      state[kD + 1] = weight;
    }
  }
}

// Adds the parts of items that have several, in order. Grid: [items, kv heads]; 128 threads.
template <int kD>
SAGE_KERNEL(128, 4)
void AttentionCombineKernel(const AttentionKernelArgs a) {
  const AttentionItem item = a.items[blockIdx.x];
  const auto head = static_cast<int32_t>(blockIdx.y);
  if (item.queries == 0 || item.splits < 2) return;
  const PlacedSlice slice = a.slices[item.slice];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int32_t rows = ItemRows(item);
  constexpr int kStride = kD + 2;
  for (int row = warp; row < item.queries; row += 4) {
    const float* const first =
        a.states + (static_cast<int64_t>(item.state) + head * item.splits * rows + row) * kStride;
    const int64_t step = int64_t{rows} * kStride;
    float top = -INFINITY, weight = 0;
    for (int32_t s = 0; s < item.splits; ++s) top = fmaxf(top, first[s * step + kD]);
    float sums[kD / 32] = {};
    for (int32_t s = 0; s < item.splits; ++s) {
      const float* const from = first + s * step;
      const float factor = from[kD] == top ? 1.0f : Exp2(from[kD] - top);
      weight += factor * from[kD + 1];
      SAGE_UNROLL
      for (int i = 0; i < kD / 32; ++i) sums[i] += factor * from[lane + 32 * i];
    }
    const int32_t query = item.query + row;
    float* const out =
        a.out + (slice.row_begin + query / a.group) * a.out_stride + (head * a.group + query % a.group) * a.D;
    SAGE_UNROLL
    for (int i = 0; i < kD / 32; ++i) {
      if (lane + 32 * i < a.D) out[lane + 32 * i] = sums[i] / weight * a.code.factor;
    }
  }
}

}  // namespace sage::cuda
