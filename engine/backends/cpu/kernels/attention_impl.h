// Attention of one kv head over pages: softmax in parts of kPartKeys positions, each with its own largest score,
// combined in order of position.
//
// A position that is not finite (in q, k or v, or a product that overflows) makes the rows that see it NaN; it is never
// dropped by a comparison.
#pragma once

#include <cstdint>

#include "engine/backends/cpu/kernels/tier.h"

namespace sage::cpu::SAGE_TIER {

// Formats: Tile is how a few queries read what is stored, in place. `kUnit` is what a
// stored scale is multiplied by, because Tile gives values / kUnit. kReference: keys may be differences from the first
// of their page, which q meets by itself.
struct PageF32 {
  using Stored = float;
  using Tile = TileF32;
  static constexpr bool kPlain = true, kScales = false, kShifts = false, kSinks = false;
  static constexpr bool kReference = false;
  static constexpr float kUnit = 1;
};
struct PageBF16 {
  using Stored = uint16_t;
  using Tile = TileBF16;
  static constexpr bool kPlain = false, kScales = false, kShifts = false, kSinks = false;
  static constexpr bool kReference = false;
  static constexpr float kUnit = 1;
};
// The first positions of a sequence beside 8-bit pages: f16, K in one page and V in the next.
struct PageSinks {
  using Stored = uint16_t;
  using Tile = TileF16;
  static constexpr bool kPlain = false, kScales = false, kShifts = false, kSinks = true;
  static constexpr bool kReference = false;
  static constexpr float kUnit = 1;
};
struct PageInt8 {
  using Stored = int8_t;
  using Tile = TileI8;
  static constexpr bool kPlain = false, kScales = true, kShifts = false, kSinks = false;
  static constexpr bool kReference = false;
  static constexpr float kUnit = 1;
};
struct PageInt8Channel {
  using Stored = int8_t;
  using Tile = TileI8Factors;
  static constexpr bool kPlain = false, kScales = true, kShifts = true, kSinks = false;
  static constexpr bool kReference = false;
  static constexpr float kUnit = 1;
};
struct PageE4M3 {
  using Stored = uint8_t;
  using Tile = TileE4M3;
  static constexpr bool kPlain = false, kScales = true, kShifts = false, kSinks = false;
  static constexpr bool kReference = true;
  static constexpr float kUnit = 256;
};
struct PageE5M2 {
  using Stored = uint8_t;
  using Tile = TileE5M2;
  static constexpr bool kPlain = false, kScales = true, kShifts = false, kSinks = false;
  static constexpr bool kReference = true;
  static constexpr float kUnit = 1;
};

// `count` stored values (a multiple of 32) as f32.
template <class Page>
void ExpandToFloat(const typename Page::Stored* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += 32) {
    Page::Tile::At(from + i).Store(to + i);
    Page::Tile::At(from + i + 16).Store(to + i + 16);
  }
}

// The factors 2^shift of Dp channels.
inline void ExpandShifts(const int8_t* shift, int64_t Dp, float* factors) {
  for (int64_t c = 0; c < Dp; c += 16) PowerOfTwo(F::Load(shift + c)).Store(factors + c);
}
// Multiplies a block in scratch by them. K: [Dp][16], a channel a row; V: [16][Dp].
inline void ApplyFactors(const float* factors, int64_t Dp, bool key, float* block) {
  for (int64_t c = 0; c < Dp; c += 16) {
    for (int64_t i = 0; i < 16; ++i) {
      float* const at = block + (key ? (c + i) * 16 : i * Dp + c);
      Mul(F::Load(at), key ? F::Set1(factors[c + i]) : F::Load(factors + c)).Store(at);
    }
  }
}

// Blocks in scratch at once.
constexpr int64_t kStageBlocks = 4;

// Where one task keeps what it works on, and the pages it reads.
template <class Page>
struct Walk {
  using Stored = typename Page::Stored;
  const AttentionTask& t;
  const int64_t Dp, state, queries;
  float *q, *running, *part, *scores, *k_scale, *v_scale, *k_differs, *stage;

  explicit Walk(const AttentionTask& task)
      : t(task), Dp((t.D + 15) / 16 * 16), state(AttentionStateFloats(t.D)), queries(t.rows * t.group) {
    q = t.scratch;
    running = q + queries * Dp;
    part = running + queries * state;
    scores = part + queries * state;
    k_scale = scores + queries * kPartKeys;
    v_scale = k_scale + kPartKeys;
    k_differs = v_scale + kPartKeys;
    stage = k_differs + kPartKeys;
  }
  int64_t First(int64_t row) const {
    const int64_t position = t.first_position + row;
    return t.window > 0 && position + 1 > t.window ? position + 1 - t.window : 0;
  }
  // Keys of `row` within the part that begins at `origin`, counted from there; empty when begin >= end.
  int64_t Begin(int64_t row, int64_t origin) const {
    const int64_t begin = First(row) - origin;
    return begin > 0 ? begin : 0;
  }
  int64_t End(int64_t row, int64_t origin) const {
    const int64_t end = t.first_position + row + 1 - origin;
    return end < kPartKeys ? end : kPartKeys;
  }
  const uint8_t* PageOf(int64_t position) const {
    const int64_t i = position / t.page_tokens;
    return t.arena + static_cast<int64_t>(t.pages[i < t.sink_pages ? 2 * i : i + t.sink_pages]) * t.offsets.page;
  }
  const Stored* Block(int64_t position, bool key) const {
    if constexpr (Page::kSinks) {
      const int64_t page = t.pages[position / t.page_tokens * 2 + (key ? 0 : 1)];
      return reinterpret_cast<const Stored*>(t.sinks + page * t.offsets.page) + position % t.page_tokens * Dp;
    }
    const auto* values = reinterpret_cast<const Stored*>(PageOf(position) + (key ? 0 : t.offsets.v));
    return values + position % t.page_tokens * Dp;
  }
  // Scales of blocks [first, last) of the part, gathered side by side.
  void GatherScales(int64_t origin, int64_t first, int64_t last) const {
    const F unit = F::Set1(Page::kUnit);
    for (int64_t b = first; b < last; ++b) {
      const int64_t position = origin + b * 16, slot = position % t.page_tokens;
      const uint8_t* const page = PageOf(position);
      const auto* k = reinterpret_cast<const float*>(page + t.offsets.k_scale);
      const auto* v = reinterpret_cast<const float*>(page + t.offsets.v_scale);
      const F key = F::Load(k + slot);
      Mul(Page::kReference ? Abs(key) : key, unit).Store(k_scale + b * 16);
      if constexpr (Page::kReference) {  // 1 where the scale is negative (none is below 2^-100), else 0
        Max(Min(Mul(key, F::Set1(-0x1p120f)), F::Set1(1.0f)), F::Zero()).Store(k_differs + b * 16);
      }
      Mul(F::Load(v + slot), unit).Store(v_scale + b * 16);
    }
  }
  // Score of a query with the first key of a page.
  float ReferenceScore(int64_t query, int64_t position) const {
    const auto* const key = reinterpret_cast<const uint16_t*>(PageOf(position) + t.offsets.k_reference);
    F sum = F::Zero();
    for (int64_t d = 0; d < Dp; d += 16) sum = Fma(F::Load(q + query * Dp + d), F::Load(key + d, true), sum);
    return Sum(sum);
  }
  // Factors of the page of a block, for K or V, in scratch after the blocks.
  const float* Factors(int64_t position, bool key, int64_t slot) const {
    float* const to = stage + (kStageBlocks * 16 + slot) * Dp;
    const int64_t offset = key ? t.offsets.k_shift : t.offsets.v_shift;
    ExpandShifts(reinterpret_cast<const int8_t*>(PageOf(position) + offset), Dp, to);
    return to;
  }
  // Blocks [first, last) of the part as f32 in scratch (f32 pages in place), for many queries.
  void Stage(int64_t origin, int64_t first, int64_t last, bool key, TileBlocks<TileF32>* blocks) const {
    for (int64_t b = first; b < last; ++b) {
      const int64_t position = origin + b * 16;
      if constexpr (Page::kPlain) {
        blocks->at[b] = Block(position, key);
      } else {
        float* const to = stage + (b - first) * 16 * Dp;
        ExpandToFloat<Page>(Block(position, key), 16 * Dp, to);
        if constexpr (Page::kShifts) ApplyFactors(Factors(position, key, 0), Dp, key, to);
        blocks->at[b] = to;
      }
    }
  }
  // The same as Tile reads them, for a few queries.
  void Point(int64_t origin, int64_t first, int64_t last, bool key, TileBlocks<typename Page::Tile>* blocks) const {
    for (int64_t b = first; b < last; ++b) {
      const int64_t position = origin + b * 16;
      blocks->at[b] = Block(position, key);
      if constexpr (Page::kShifts) blocks->factors[b] = Factors(position, key, b - first);
    }
  }
  // While blocks [first, last) of K or V are worked on, the stage behind them is asked from memory: the next blocks of
  // the part, or V's first ones behind the last of K.
  void AskAhead(int64_t origin, int64_t first, int64_t last, int64_t part_first, int64_t part_last, bool key,
                TileBlocks<typename Page::Tile>* blocks) const {
    blocks->ahead_bytes = 16 * sizeof(Stored);
    const int64_t behind = last < part_last ? last : part_first;
    const bool any = key || last < part_last;
    for (int64_t b = first; b < last; ++b) {
      const int64_t next = behind + (b - first);
      blocks->ahead[b] = any && next < part_last
                             ? reinterpret_cast<const uint8_t*>(Block(origin + next * 16, key && last < part_last))
                             : nullptr;
    }
  }
};

// Weights of one query from its scores over [begin, end): p = e^(s - largest), with the scale of each value folded in.
template <class Page>
void Soften(const Walk<Page>& w, int64_t origin, int64_t query, int64_t begin, int64_t end) {
  float* const s = w.scores + query * kPartKeys;
  float* const state = w.part + query * w.state;
  const int64_t first = begin / 16 * 16, last = (end + 15) / 16 * 16;
  F reference = F::Zero();
  for (int64_t i = first; i < last; i += 16) {
    F score = F::Load(s + i);
    if constexpr (Page::kScales) score = Mul(score, F::Load(w.k_scale + i));
    if constexpr (Page::kReference) {
      if (i == first || (origin + i) % w.t.page_tokens == 0) reference = F::Set1(w.ReferenceScore(query, origin + i));
      score = Fma(reference, F::Load(w.k_differs + i), score);
    }
    Fma(score, F::Zero(), score).Store(s + i);  // an infinity becomes NaN: its weight of 0 or 1 would hide it
  }
  for (int64_t i = first; i < begin; ++i) s[i] = -3.0e38f;
  for (int64_t i = end; i < last; ++i) s[i] = -3.0e38f;
  F most = F::Set1(-3.0e38f);
  for (int64_t i = first; i < last; i += 16) most = Max(F::Load(s + i), most);
  const float largest = MaxLane(most);
  F sum = F::Zero();
  for (int64_t i = first; i < last; i += 16) {
    F p = Exp(Sub(F::Load(s + i), F::Set1(largest)));
    if (i < begin || i + 16 > end) {
      float edge[16];
      p.Store(edge);
      for (int64_t j = 0; j < 16; ++j) {
        if (i + j < begin || i + j >= end) edge[j] = 0.0f;
      }
      p = F::Load(edge);
    }
    sum = Add(sum, p);
    if constexpr (Page::kScales) p = Mul(p, F::Load(w.v_scale + i));
    p.Store(s + i);
  }
  state[w.Dp] = largest;
  state[w.Dp + 1] = Sum(sum);
}

// Adds the state of a later part to `to`. A sum of 0 says that the query saw no key there.
inline void CombineStates(float* to, const float* part, int64_t Dp) {
  if (part[Dp + 1] == 0.0f) return;
  if (to[Dp + 1] == 0.0f) {
    for (int64_t d = 0; d < Dp + 16; d += 16) F::Load(part + d).Store(to + d);
    return;
  }
  const float most = to[Dp] > part[Dp] ? to[Dp] : part[Dp];
  float old_factor[16], new_factor[16];
  Exp(F::Set1(to[Dp] - most)).Store(old_factor);
  Exp(F::Set1(part[Dp] - most)).Store(new_factor);
  const F a = F::Set1(old_factor[0]), b = F::Set1(new_factor[0]);
  for (int64_t d = 0; d < Dp; d += 16) Fma(b, F::Load(part + d), Mul(a, F::Load(to + d))).Store(to + d);
  to[Dp] = most;
  to[Dp + 1] = to[Dp + 1] * old_factor[0] + part[Dp + 1] * new_factor[0];
}

// out = acc / sum of one query.
inline void Finish(const AttentionTask& t, const float* state, int64_t query) {
  const int64_t Dp = (t.D + 15) / 16 * 16;
  float* const to = t.out + query / t.group * t.out_row_stride + query % t.group * t.D;
  const F sum = F::Set1(state[Dp + 1]);
  int64_t d = 0;
  for (; d + 16 <= t.D; d += 16) Div(F::Load(state + d), sum).Store(to + d);
  if (d < t.D) {
    float tail[16];
    Div(F::Load(state + d), sum).Store(tail);
    for (int64_t i = 0; d + i < t.D; ++i) to[d + i] = tail[i];
  }
}

void CombineParts(const float* partial, int64_t parts, const AttentionTask& t) {
  const int64_t Dp = (t.D + 15) / 16 * 16, state = AttentionStateFloats(t.D), queries = t.rows * t.group;
  for (int64_t i = 0; i < queries; ++i) {
    float* const to = t.scratch;
    to[Dp + 1] = 0.0f;
    for (int64_t p = 0; p < parts; ++p) CombineStates(to, partial + (p * queries + i) * state, Dp);
    Finish(t, to, i);
  }
}

// Values of the blocks [b0, b1) for all rows: positions that every row sees in tiles of all queries, the rest row by
// row.
template <bool kAsk, class Page, class T>
void WeighValues(const Walk<Page>& w, const TileBlocks<T>& blocks, int64_t origin, int64_t b0, int64_t b1) {
  const int64_t group = w.t.group;
  const auto values = [&](int64_t row, int64_t rows, int64_t begin, int64_t end) {
    begin = begin > b0 * 16 ? begin : b0 * 16;
    end = end < b1 * 16 ? end : b1 * 16;
    Values<T, kAsk>(blocks, w.Dp, begin, end, w.scores + row * group * kPartKeys, rows * group,
                    w.part + row * group * w.state, w.state);
  };
  const int64_t common_begin = w.Begin(w.t.rows - 1, origin), common_end = w.End(0, origin);
  if (common_begin >= common_end) {
    for (int64_t r = 0; r < w.t.rows; ++r) values(r, 1, w.Begin(r, origin), w.End(r, origin));
    return;
  }
  for (int64_t r = 0; r < w.t.rows; ++r) values(r, 1, w.Begin(r, origin), common_begin);
  values(0, w.t.rows, common_begin, common_end);
  for (int64_t r = 0; r < w.t.rows; ++r) values(r, 1, common_end, w.End(r, origin));
}

// Blocks [first, last) of one part for all rows of the task.
template <class Page>
void AttendPart(const Walk<Page>& w, int64_t origin, int64_t first, int64_t last) {
  // A few queries read the stored values once where they lie; more share one expansion.
  const bool wide = w.queries > 8;
  TileBlocks<typename Page::Tile> direct;
  TileBlocks<TileF32> staged;
  for (int64_t b = first; b < last; b += kStageBlocks) {
    const int64_t end = b + kStageBlocks < last ? b + kStageBlocks : last;
    if (wide) {
      w.Stage(origin, b, end, true, &staged);
      Scores(staged, b, end, w.t.D, w.Dp, w.q, w.queries, w.scores);
    } else {
      w.Point(origin, b, end, true, &direct);
      w.AskAhead(origin, b, end, first, last, true, &direct);
      Scores<typename Page::Tile, true>(direct, b, end, w.t.D, w.Dp, w.q, w.queries, w.scores);
    }
  }
  if constexpr (Page::kScales) w.GatherScales(origin, first, last);
  for (int64_t i = 0; i < w.queries; ++i) {
    float* const state = w.part + i * w.state;
    for (int64_t d = 0; d < w.Dp + 16; d += 16) F::Zero().Store(state + d);
    int64_t begin = w.Begin(i / w.t.group, origin), end = w.End(i / w.t.group, origin);
    if (begin < first * 16) begin = first * 16;
    if (end > last * 16) end = last * 16;
    if (begin < end) Soften(w, origin, i, begin, end);
  }
  for (int64_t b = first; b < last; b += kStageBlocks) {
    const int64_t end = b + kStageBlocks < last ? b + kStageBlocks : last;
    if (wide) {
      w.Stage(origin, b, end, false, &staged);
      WeighValues<false>(w, staged, origin, b, end);
    } else {
      w.Point(origin, b, end, false, &direct);
      w.AskAhead(origin, b, end, first, last, false, &direct);
      WeighValues<true>(w, direct, origin, b, end);
    }
  }
}

// The states of the part that was attended last, to those before.
template <class Page>
void CombinePart(const Walk<Page>& w) {
  for (int64_t i = 0; i < w.queries; ++i) CombineStates(w.running + i * w.state, w.part + i * w.state, w.Dp);
}

// Blocks of the part at `origin` that lie in sink pages.
inline int64_t SinkBlocks(const AttentionTask& t, int64_t origin) {
  const int64_t positions = static_cast<int64_t>(t.sink_pages) * t.page_tokens - origin;
  return positions <= 0 ? 0 : (positions < kPartKeys ? positions : kPartKeys) / 16;
}

template <class Page>
void Attend(const AttentionTask& t) {
  const Walk<Page> w(t);
  for (int64_t i = 0; i < w.queries; ++i) {
    const float* const from = t.q + i / t.group * t.q_row_stride + i % t.group * t.D;
    for (int64_t d = 0; d < t.D; ++d) w.q[i * w.Dp + d] = from[d] * t.scale;
    for (int64_t d = t.D; d < w.Dp; ++d) w.q[i * w.Dp + d] = 0.0f;
    w.running[i * w.state + w.Dp + 1] = 0.0f;
  }
  for (int64_t p = t.part_begin; p < t.part_end; ++p) {
    const int64_t origin = p * kPartKeys;
    const int64_t first = w.Begin(0, origin) / 16, last = (w.End(t.rows - 1, origin) + 15) / 16;
    // Positions in 16 bits come first, as a part of their own.
    const int64_t sinks = Page::kScales ? SinkBlocks(t, origin) : 0, middle = sinks < last ? sinks : last;
    if (first < middle) {
      AttendPart(Walk<PageSinks>(t), origin, first, middle);
      CombinePart(w);
    }
    if (first < middle && middle == last) continue;
    AttendPart(w, origin, first > middle ? first : middle, last);
    CombinePart(w);
  }
  for (int64_t i = 0; i < w.queries; ++i) {
    const float* const state = w.running + i * w.state;
    if (t.partial == nullptr) {
      Finish(t, state, i);
    } else {
      for (int64_t d = 0; d < w.state; d += 16) F::Load(state + d).Store(t.partial + i * w.state + d);
    }
  }
}

}  // namespace sage::cpu::SAGE_TIER
