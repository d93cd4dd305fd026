// Packed codes back to rows of bf16, for a dense product by a library when there are many tokens.
#pragma once

#include "engine/backends/cuda/kernels/linear_device.h"

namespace sage::cuda {

constexpr int kExpandThreads = 32 * kRowTiles;
constexpr int kExpandBlocks = 8;  // k blocks of a thread block

struct ExpandArgs {
  PackedLayer layer;
  int first_block = 0;     // row block that becomes row 0 of `to`
  int K = 0;               // inputs of a row of `to`; the rest of the last k block is left out
  uint16_t* to = nullptr;  // [64 row blocks of the grid, K] bf16
};

SAGE_HD uint32_t Bf16Bits(uint32_t f32_bits) { return (f32_bits + 0x7fffu + (f32_bits >> 16 & 1u)) >> 16; }

// Grid: [ceil(k blocks / kExpandBlocks), row blocks]. A warp a row tile. K is a multiple of 4.
template <Code kCode, Fold kFold>
SAGE_KERNEL(kExpandThreads, 4)
void ExpandRows(const SAGE_GRID_CONSTANT ExpandArgs p) {
  static_assert(!HasByteActivations(kCode));
  constexpr int kUnits = WeightUnits(kCode);
  uint8_t* const table = SharedMemory();
  const int rt = Thread() / 32, lane = Thread() % 32;
  const PackedLayer& layer = p.layer;
  if constexpr (kCode == Code::kTable16) {
    FillPairTable(table, layer.table);
    SyncThreads();
  }
  const int row_block = p.first_block + BlockY();
  const int chunk_bytes = kRowBlock * RecordBytes(layer.wide, kFold == Fold::kOffset);
  const int last = (BlockX() + 1) * kExpandBlocks;
  for (int kb = BlockX() * kExpandBlocks; kb < last && kb < layer.k_blocks; ++kb) {
    uint4 loaded[kUnits];
    const int64_t tile = (static_cast<int64_t>(row_block) * layer.k_blocks + kb) * kRowTiles + rt;
    SAGE_UNROLL
    for (int u = 0; u < kUnits; ++u) loaded[u] = LoadOnce16(layer.codes + (tile * kUnits + u) * kUnitBytes + lane * 16);
    const uint8_t* records =
        layer.scales + (static_cast<int64_t>(row_block) * layer.groups + GroupOf(layer, kb)) * chunk_bytes;
    SAGE_UNROLL
    for (int step = 0; step < Steps(kCode); ++step) {
      uint32_t a[4];
      DecodeStep<kCode>(reinterpret_cast<const uint32_t*>(loaded), step, layer.constants, table + lane * 4, a);
      const uint8_t* chunk = records + step * layer.chunks / Steps(kCode) * chunk_bytes;
      const int k = kb * kBlockInputs + step * 16 + lane % 4 * 4;
      SAGE_UNROLL
      for (int upper = 0; upper < 2; ++upper) {
        const int row = rt * kRowTile + lane / 4 + upper * 8;
        const float2 record = LoadRecord<kFold>(chunk, row, layer.wide, layer.zero_is_code);
        uint32_t words[2];
        SAGE_UNROLL
        for (int pair = 0; pair < 2; ++pair) {
          const uint32_t codes = a[pair * 2 + upper];
          const float first = FusedRn(record.x, HalfToFloat(static_cast<uint16_t>(codes)), record.y) * layer.factor;
          const float second =
              FusedRn(record.x, HalfToFloat(static_cast<uint16_t>(codes >> 16)), record.y) * layer.factor;
          words[pair] = Bf16Bits(BitsOf(first)) | Bf16Bits(BitsOf(second)) << 16;
        }
        if (k < p.K) {
          auto* to = p.to + (static_cast<int64_t>(BlockY()) * kRowBlock + row) * p.K + k;
          *reinterpret_cast<uint2*>(to) = uint2{words[0], words[1]};
        }
      }
    }
  }
}

}  // namespace sage::cuda
