// What the units of a machine do at most, measured with the vectors of a tier: the denominators of the kernel bench.
//
// A probe is the inner loop of a product whose operands are already in registers, in the shape of the panel kernels
// (kPanelRows x kPanelCols sums); kRead adds up 64-byte lines.
#pragma once

#include <cstdint>

#include "engine/backends/cpu/kernels/tier.h"

namespace sage::cpu::SAGE_TIER {

// MR x NR running sums over a table of eight vectors; `Step` is what one of them does.
template <class Sum, class Step>
inline void ProbeLoop(const uint8_t* table, int64_t rounds, float* sink, const Step& step) {
  Sum acc[kPanelRows][kPanelCols];
  for (auto& row : acc) {
    for (Sum& sum : row) sum = Sum::Zero();
  }
  W x[kPanelRows];
  for (int m = 0; m < kPanelRows; ++m) x[m] = W::Four(table + 4 * m);
  for (int64_t r = 0; r < rounds; ++r) {
    W w[kPanelCols];
    for (int j = 0; j < kPanelCols; ++j) w[j] = W::Load(table + (r * kPanelCols + j) % 8 * 64);
    for (int m = 0; m < kPanelRows; ++m) {
      for (int j = 0; j < kPanelCols; ++j) acc[m][j] = step(acc[m][j], w[j], x[m]);
    }
  }
  for (auto& row : acc) {
    for (Sum& sum : row) sink[0] += Total(sum);
  }
}

inline float Total(I a) { return Sum(ToFloat(a)); }

// data: `bytes` readable bytes, at least 1024. Returns the bytes read, or the multiplications and additions.
int64_t RunProbe(Probe probe, const uint8_t* data, int64_t bytes, float* sink) {
  constexpr int64_t kRounds = 20000, kSums = kPanelRows * kPanelCols;
  if (probe == Probe::kRead) {
    I lines[4] = {I::Zero(), I::Zero(), I::Zero(), I::Zero()};
    for (int64_t i = 0; i + 256 <= bytes; i += 256) {
      Prefetch(data + i + 2048);
      Prefetch(data + i + 2176);
      for (int j = 0; j < 4; ++j) lines[j] = Add(lines[j], I::Load(data + i + 64 * j));
    }
    *sink += Total(Add(Add(lines[0], lines[1]), Add(lines[2], lines[3])));
    return bytes;
  }
  if (probe == Probe::kInt16) {
    ProbeLoop<I>(data, kRounds, sink, [](I sum, const W& w, const W& x) { return Dot(sum, w, x); });
    return kRounds * kSums * 64;
  }
  if (probe == Probe::kInt8) {
    ProbeLoop<I>(data, kRounds, sink, [](I sum, const W& w, const W& x) { return DotBytes(sum, w, x); });
    return kRounds * kSums * 128;
  }
  F acc[kPanelRows][kPanelCols];
  for (int m = 0; m < kPanelRows; ++m) {
    for (int j = 0; j < kPanelCols; ++j) acc[m][j] = F::Set1(1.0f / static_cast<float>(8 + m + j));
  }
  const F a = F::Set1(static_cast<float>(data[0]) * 1e-3f), b = F::Set1(static_cast<float>(data[1]) * 1e-3f);
  for (int64_t r = 0; r < kRounds; ++r) {
    for (auto& row : acc) {
      for (F& sum : row) sum = Fma(sum, a, b);
    }
  }
  for (auto& row : acc) {
    for (F& sum : row) *sink += Sum(sum);
  }
  return kRounds * kSums * 32;
}

}  // namespace sage::cpu::SAGE_TIER
