// How the rows of a product are cut into tiles whose height the compiler knows.
#pragma once

#include <cstdint>

namespace sage::cpu::SAGE_TIER {

// tile<rows>(m) for rows in 1 .. kMost.
template <int kMost, class Tile>
inline void TileOf(int64_t rows, int64_t m, const Tile& tile) {
  if constexpr (kMost > 1) {
    if (rows < kMost) return TileOf<kMost - 1>(rows, m, tile);
  }
  tile.template operator()<kMost>(m);
}

// Calls tile<rows>(m) over [begin, end): as few tiles as there can be, of nearly equal height, because a low tile loads
// as many weights as a high one.
template <int kMost, class Tile>
inline void OverRows(int64_t begin, int64_t end, const Tile& tile) {
  const int64_t tiles = (end - begin + kMost - 1) / kMost;
  if (tiles == 0) return;
  const int64_t least = (end - begin) / tiles, higher = (end - begin) % tiles;
  int64_t m = begin;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t rows = least + (t < higher ? 1 : 0);
    TileOf<kMost>(rows, m, tile);
    m += rows;
  }
}

}  // namespace sage::cpu::SAGE_TIER
