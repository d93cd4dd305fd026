// The inner kernels of the dense algebra, one record a processor tier; all tiers give the same bits.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/types/span.h"

namespace sage {

template <typename T>
struct GemmKernels {
  int rows = 0;     // of a tile: width of a packed sliver of A
  int columns = 0;  // width of a packed sliver of B
  // tile[rows, columns] = sum over d in [0, depth) of a[d, row] * b[d, column], each element one fused chain.
  void (*tile)(int64_t depth, const T* a, const T* b, T* tile) = nullptr;
  // row[r][j] += sign * tile[r, j] for first[r] <= j < columns.
  void (*merge)(const T* tile, int width, int rows, int columns, const int* first, T sign, T* const* row) = nullptr;
  // row[r][j] = sign * tile[r, j] for the same j.
  void (*store)(const T* tile, int width, int rows, int columns, const int* first, T sign, T* const* row) = nullptr;
  // `merge` into f64 sums.
  void (*merge_f64)(const T* tile, int width, int rows, int columns, const int* first, T sign,
                    double* const* row) = nullptr;
  // y[i] = fma(a, x[i], y[i]).
  void (*add_scaled)(int64_t count, T a, const T* x, T* y) = nullptr;
  // sliver[depth, width] of `width` (rows or columns) lines of a strided matrix; lines from `lines` on are zero.
  void (*pack_rows)(const T* source, int64_t line_stride, int64_t depth_stride, int lines, int64_t depth,
                    T* sliver) = nullptr;
  void (*pack_columns)(const T* source, int64_t line_stride, int64_t depth_stride, int lines, int64_t depth,
                       T* sliver) = nullptr;
};

struct GemmTier {
  std::string_view name;  // "plain", "avx2", "avx512"
  GemmKernels<float> f32;
  GemmKernels<double> f64;
};

// The best tier that this machine has (SAGE_CPU_TIER lowers it).
const GemmTier& HostGemmTier();
// Every tier that this machine can run, best last; tests compare them.
absl::Span<const GemmTier* const> RunnableGemmTiers();

template <typename T>
const GemmKernels<T>& KernelsOf(const GemmTier& tier);
template <>
const GemmKernels<float>& KernelsOf<float>(const GemmTier& tier);
template <>
const GemmKernels<double>& KernelsOf<double>(const GemmTier& tier);

}  // namespace sage
