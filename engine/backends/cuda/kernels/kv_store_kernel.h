// Writes new positions into KV pages. A warp takes the K or the V of one row and head; 8-bit formats get a scale from
// the data by the same arithmetic, in the same order, as on the CPU.
#pragma once

#include "engine/backends/cuda/kernels/attention_args.h"
#include "engine/backends/cuda/kv_codes.h"

namespace sage::cuda {

// The scale of eight candidates with the least squared error. Lane 8 c + a sums every eighth value from a on, for
// candidates c and c + 4; the eight sums of a candidate are added as a tree.
SAGE_DEVICE float FinestKvScale(const float* row, int32_t D, float scale, int mantissa) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float cost[2];
  SAGE_UNROLL
  for (int half = 0; half < 2; ++half) {
    const float tried = MulRn(scale, CandidateFactor(lane / 8 + 4 * half)), inverse = DivRn(1.0f, tried);
    float error = 0;
    for (int32_t d = lane % 8; d < D; d += 8) {
      const float value = MulRn(row[d], inverse), lost = SubRn(value, RoundMantissa(value, mantissa));
      error = AddRn(error, MulRn(lost, lost));
    }
    error = AddRn(error, ShuffleXor(error, 1));
    error = AddRn(error, ShuffleXor(error, 2));
    error = AddRn(error, ShuffleXor(error, 4));
    cost[half] = MulRn(MulRn(error, tried), tried);
  }
  float least = FloatOf(kLargestFloatBits), best = scale;
  for (int candidate = 0; candidate < 8; ++candidate) {
    const float low = Shuffle(cost[0], candidate % 4 * 8), high = Shuffle(cost[1], candidate % 4 * 8);
    const float found = candidate < 4 ? low : high;
    if (found < least) {
      least = found;
      best = MulRn(scale, CandidateFactor(candidate));
    }
  }
  return best;
}

// Where the first key of a row's page comes from: this step's rows, or the page itself.
struct FirstKey {
  const float* row;  // null: `stored`
  const uint16_t* stored;
  SAGE_DEVICE uint16_t Half(int32_t d) const {
    if (row == nullptr) return stored[d];
    return IsFinite(row[d]) ? SaturateF16(row[d]) : static_cast<uint16_t>(0);
  }
};

// Takes the first key from x where that leaves the smaller sum of squares, and says so. Sums as in FinestKvScale.
SAGE_DEVICE bool TakeDifference(const FirstKey& first, int32_t D, float* x) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float with = 0, without = 0;
  for (int32_t d = lane % 8; d < D; d += 8) {
    const float less = SubRn(x[d], F16Value(first.Half(d)));
    with = AddRn(with, MulRn(less, less));
    without = AddRn(without, MulRn(x[d], x[d]));
  }
  for (int mask = 1; mask < 8; mask *= 2) {
    with = AddRn(with, ShuffleXor(with, mask));
    without = AddRn(without, ShuffleXor(without, mask));
  }
  if (!(with < without)) return false;
  SyncWarp();
  for (int32_t d = lane; d < D; d += 32) x[d] = SubRn(x[d], F16Value(first.Half(d)));
  SyncWarp();
  return true;
}

// Formats without a scale: values that are not finite would reach rows that give them no weight (0 * inf), so they
// become zeros and the key says NaN, which only the rows that see it take.
SAGE_DEVICE void MarkNotFinite(const float* v_row, bool key, int32_t D, float* x) {
  bool bad = false;
  for (int32_t d = static_cast<int32_t>(threadIdx.x); d < D; d += 32) bad = bad || !IsFinite(v_row[d]);
  if (!AnyLane(bad)) return;
  for (int32_t d = static_cast<int32_t>(threadIdx.x); d < D; d += 32) x[d] = key ? FloatOf(0x7fc00000u) : 0.0f;
}

// Grid: [M, kv heads, 2]; 32 threads; shared memory [Dp] f32.
SAGE_KERNEL(32, 16)
void KvStoreKernel(const KvStoreArgs a) {
  const auto row = static_cast<int32_t>(blockIdx.x), head = static_cast<int32_t>(blockIdx.y);
  const bool key = blockIdx.z == 0;
  const int lane = static_cast<int>(threadIdx.x);
  const int32_t which = a.row_slice[row];
  if (which < 0) return;
  const PlacedSlice slice = a.slices[which];
  const int32_t position = slice.context + row - slice.row_begin;
  const int32_t page_number = position / a.page_tokens, slot = position % a.page_tokens;
  const int32_t entry = PageEntry(page_number, a.sink_pages);
  const float* const k_row = a.k + row * a.k_stride + head * a.D;
  const float* const v_row = a.v + row * a.v_stride + head * a.D;
  const float* const from = key ? k_row : v_row;
  auto* const x = reinterpret_cast<float*>(SharedMemory());
  float most = 0;
  bool finite = true;
  for (int32_t d = lane; d < a.Dp; d += 32) {
    x[d] = d < a.D ? from[d] : 0.0f;
    finite = finite && IsFinite(x[d]);
    most = fmaxf(most, fabsf(x[d]));
  }
  const bool sink = a.code.largest > 0 && page_number < a.sink_pages;
  if (a.code.largest == 0 || sink) MarkNotFinite(v_row, key, a.D, x);
  SyncWarp();
  if (sink) {
    uint8_t* const page = a.arena + a.pages[slice.pages + entry + (key ? 0 : 1)] * a.offsets.page;
    auto* const to = reinterpret_cast<uint16_t*>(page + head * a.offsets.sink_head) + slot * a.Dp;
    for (int32_t d = lane; d < a.Dp; d += 32) to[d] = SaturateF16(x[d]);
    return;
  }
  uint8_t* const base = a.arena + a.pages[slice.pages + entry] * a.offsets.page + head * a.offsets.head;
  uint8_t* const values = base + (key ? 0 : a.offsets.v);
  const int32_t at = slot * a.Dp;
  if (a.store == KvStore::kF32) {
    for (int32_t d = lane; d < a.Dp; d += 32) reinterpret_cast<float*>(values)[at + d] = x[d];
    return;
  }
  if (a.store == KvStore::kBf16) {
    for (int32_t d = lane; d < a.Dp; d += 32) reinterpret_cast<uint16_t*>(values)[at + d] = SaturateBf16(x[d]);
    return;
  }
  const bool all_finite = !AnyLane(!finite);
  const float* const calibrated = key ? a.k_scales : a.v_scales;
  const bool chosen = calibrated == nullptr && all_finite && a.store == KvStore::kFp8;
  bool differs = false;
  if (key && a.store == KvStore::kFp8) {
    auto* const stored = reinterpret_cast<uint16_t*>(base + a.offsets.k_reference);
    const FirstKey first = {slot <= row - slice.row_begin ? from - slot * a.k_stride : nullptr, stored};
    if (slot == 0) {
      for (int32_t d = lane; d < a.Dp; d += 32) stored[d] = d < a.D && calibrated == nullptr ? first.Half(d) : 0;
    }
    differs = chosen && TakeDifference(first, a.D, x);
  }
  if (differs) {
    most = 0;
    for (int32_t d = lane; d < a.D; d += 32) most = fmaxf(most, fabsf(x[d]));
  }
  for (int mask = 1; mask < 32; mask *= 2) most = fmaxf(most, ShuffleXor(most, mask));
  float scale = calibrated != nullptr ? calibrated[head] : RangeScale(most, a.code);
  if (chosen && scale > kSmallestKvScale && scale < 1e30f) scale = FinestKvScale(x, a.D, scale, a.code.mantissa);
  for (int32_t d = lane; d < a.Dp; d += 32) {
    const float value = all_finite ? DivRn(x[d], scale) : 0.0f;
    values[at + d] = a.store == KvStore::kInt8 ? EncodeInt8(value) : EncodeFp8(value, a.code);
  }
  if (lane == 0) {
    auto* const plane = reinterpret_cast<float*>(base + (key ? a.offsets.k_scale : a.offsets.v_scale));
    plane[slot] = !all_finite ? FloatOf(0x7fc00000u) : differs ? -scale : scale;
  }
}

}  // namespace sage::cuda
