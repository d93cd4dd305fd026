// From the codes of a checkpoint to the order the linear kernels stream: what one lane's 16 bytes are made of. Run by
// the repacking kernel, a thread a unit, and by the tests on the host.
#pragma once

#include "engine/backends/cuda/kernels/linear_layout.h"

namespace sage::cuda {

// Row-major codes as they come: [N, K] bytes, nibbles, or ggml blocks of 32.
enum class CodeFormat : int { kBytes, kNibblesLowFirst, kNibblesHighFirst, kQ4_0, kQ4_1, kQ8_0 };

constexpr int GgmlBlockBytes(CodeFormat format) {
  return format == CodeFormat::kQ4_0 ? 18 : format == CodeFormat::kQ4_1 ? 20 : 34;
}

struct CodeSource {
  CodeFormat format = CodeFormat::kBytes;
  const uint8_t* data = nullptr;
  int64_t N = 0, K = 0;
  const int32_t* order = nullptr;  // [places] the input at each place, -1: none; null: inputs as they come
  int64_t places = 0;              // K when there is no order
  uint32_t add = 0;                // to every code, modulo its bits
};

SAGE_HD uint32_t ReadCode(const CodeSource& source, int64_t n, int64_t k) {
  const int64_t i = n * source.K + k;
  switch (source.format) {
    case CodeFormat::kNibblesLowFirst:
      return source.data[i / 2] >> (i % 2 * 4) & 15u;
    case CodeFormat::kNibblesHighFirst:
      return source.data[i / 2] >> (4 - i % 2 * 4) & 15u;
    case CodeFormat::kQ4_0:
    case CodeFormat::kQ4_1: {
      const int header = source.format == CodeFormat::kQ4_0 ? 2 : 4;
      const uint8_t byte = source.data[i / 32 * GgmlBlockBytes(source.format) + header + i % 16];
      return i % 32 < 16 ? byte & 15u : byte >> 4;
    }
    case CodeFormat::kQ8_0:
      return source.data[i / 32 * 34 + 2 + i % 32];
    default:
      return source.data[i];
  }
}

// Word `word` of unit `index` of a packed weight, counted in memory order.
SAGE_HD uint32_t PackWord(Code code, const CodeSource& source, int k_blocks, int64_t index, int word) {
  const int units = WeightUnits(code), bits = IsNibble(code) ? 4 : 8, each = 32 / bits;
  const int lane = static_cast<int>(index % 32), unit = static_cast<int>(index / 32 % units);
  const int row_tile = static_cast<int>(index / 32 / units % kRowTiles);
  const int64_t block = index / 32 / units / kRowTiles;
  const int64_t row = block / k_blocks * kRowBlock + row_tile * kRowTile, k0 = block % k_blocks * kBlockInputs;
  uint32_t packed = 0;
  for (int i = 0; i < each; ++i) {
    const TileElement e = WeightElement(code, lane, unit, word * each + i);
    int64_t k = k0 + e.k;
    if (row + e.row >= source.N || k >= source.places) continue;
    if (source.order != nullptr) k = source.order[k];
    if (k < 0) continue;
    packed |= ((ReadCode(source, row + e.row, k) + source.add) & ((1u << bits) - 1)) << (i * bits);
  }
  return packed;
}

SAGE_HD int64_t PackedUnits(Code code, int row_blocks, int k_blocks) {
  return static_cast<int64_t>(row_blocks) * k_blocks * kRowTiles * WeightUnits(code) * 32;
}

}  // namespace sage::cuda
