// Linear layers for more than 16 tokens: tiles of 256 outputs by 64 tokens on tensor cores.
//
// A warp owns 64 outputs by 32 tokens. Weights and activations of a k block are shared by the block through a ring of
// asynchronous copies. Every output is summed as linear_stream.h sums it: chunks of a part, parts of a slice, slices.
// With few tiles the slices run in blocks of their own (grid z) and the last one adds them; otherwise one block runs
// them one after the other and keeps the running total in `out`.
#pragma once

#include "engine/backends/cuda/kernels/linear_device.h"

namespace sage::cuda {

constexpr int kTileRowWarps = 4, kTileTokenWarps = 2;
constexpr int kTileThreads = 32 * kTileRowWarps * kTileTokenWarps;
constexpr int kWarpTiles = 4;  // token tiles of a warp
constexpr int kBlockTiles = kWarpTiles * kTileTokenWarps;
// k blocks in flight; what fits two stages of the largest layers into the 99 KiB of capability 8.6 and 8.9.
constexpr int TileStages(Code code) { return IsNibble(code) && code != Code::kTable16 ? 3 : 2; }

struct TileArgs {
  PackedLayer layer;
  PreparedRows rows;
  LinearOutput out;
  StageLayout stage;
};

template <Code kCode, Fold kFold>
SAGE_DEVICE void FillStage(const TileArgs& p, uint8_t* stage, int kb, uint64_t policy) {
  constexpr int kTileBytes = ActivationTileBytes(kCode);
  const PackedLayer& layer = p.layer;
  const int first_block = BlockX() * kTileRowWarps, first_tile = BlockY() * kBlockTiles;
  SAGE_UNROLL
  for (int i = Thread() * 16; i < kTileRowWarps * CodeBlockBytes(kCode); i += kTileThreads * 16) {
    const int row_block = first_block + i / CodeBlockBytes(kCode);
    const bool valid = row_block < layer.row_blocks;
    const int64_t block = static_cast<int64_t>(valid ? row_block : 0) * layer.k_blocks + kb;
    AsyncCopyOnce16(stage + i, layer.codes + block * CodeBlockBytes(kCode) + i % CodeBlockBytes(kCode), valid, policy);
  }
  const uint8_t* activations = p.rows.codes + (static_cast<int64_t>(kb) * p.rows.tiles + first_tile) * kTileBytes;
  SAGE_UNROLL
  for (int i = Thread() * 16; i < kBlockTiles * kTileBytes; i += kTileThreads * 16) {
    const bool valid = (first_tile + i / kTileBytes) * kTokenTile + i / 64 % kTokenTile < p.rows.M;
    AsyncCopy16(stage + p.stage.activations + i, activations + (valid ? i : 0), valid);
  }
  const int chunk_bytes = kRowBlock * RecordBytes(layer.wide, kFold == Fold::kOffset);
  const int block_bytes = layer.chunks * chunk_bytes, group = GroupOf(layer, kb);
  SAGE_ROLLED
  for (int i = Thread() * 16; i < kTileRowWarps * block_bytes; i += kTileThreads * 16) {
    const int in_block = i / block_bytes;
    const int row_block = first_block + in_block;
    const bool valid = row_block < layer.row_blocks;
    const int64_t record = static_cast<int64_t>(valid ? row_block : 0) * layer.groups + group;
    AsyncCopy16(stage + p.stage.scales + i, layer.scales + record * chunk_bytes + (i - in_block * block_bytes), valid);
  }
  if constexpr (kFold != Fold::kScale) {
    constexpr int kTokens = kBlockTiles * kTokenTile;
    SAGE_ROLLED
    for (int i = Thread() * 4; i < layer.chunks * kTokens; i += kTileThreads * 4) {
      const int token = first_tile * kTokenTile + i % kTokens;
      const bool valid = token < p.rows.tiles * kTokenTile;
      const int64_t chunk = static_cast<int64_t>(kb) * layer.chunks + i / kTokens;
      const float* from = p.rows.chunk + chunk * p.rows.tiles * kTokenTile + (valid ? token : 0);
      AsyncCopy16(stage + p.stage.sums + i * 4, from, valid);
    }
  }
}

// Sums of a warp in local memory: touched once a part, so that the registers belong to the product. Loops over them
// stay rolled.
struct TileSums {
  volatile float value[kRowTiles * kWarpTiles * 4];
};

// Calls fn(row of the layer, token, value) for every value of the warp that exists.
template <typename Fn>
SAGE_DEVICE void ForEachOutput(const TileArgs& p, int first_row, int first_token, TileSums& sums, Fn&& fn) {
  const int lane = Thread() % 32;
  SAGE_ROLLED
  for (int i = 0; i < kRowTiles * kWarpTiles * 4; ++i) {
    const int row = first_row + i / (kWarpTiles * 4) * kRowTile + lane / 4 + i / 2 % 2 * 8;
    const int token = first_token + i / 4 % kWarpTiles * kTokenTile + lane % 4 * 2 + i % 2;
    if (row < p.layer.N && token < p.rows.M) fn(row, token, sums.value[i]);
  }
}

template <Code kCode, Fold kFold>
SAGE_KERNEL(kTileThreads, 1)
void LinearTile(const SAGE_GRID_CONSTANT TileArgs p) {
  uint8_t* const shared = SharedMemory();
  const PackedLayer& layer = p.layer;
  const int warp = Thread() / 32, lane = Thread() % 32;
  const int row_warp = warp % kTileRowWarps, token_warp = warp / kTileRowWarps;
  const int first_row = (BlockX() * kTileRowWarps + row_warp) * kRowBlock;
  const int first_token = (BlockY() * kTileTokenWarps + token_warp) * kWarpTiles * kTokenTile;
  const bool split = gridDim.z > 1;
  const int parts = layer.slices * kSliceParts;
  const int first_part = split ? BlockZ() * kSliceParts : 0;
  const int last_part = split ? first_part + kSliceParts : parts;
  const int kb_begin = PartRange(layer.k_blocks, parts, first_part).begin;
  const int kb_end = PartRange(layer.k_blocks, parts, last_part - 1).end;
  constexpr int kStages = TileStages(kCode);
  uint8_t* const table = shared + kFlagBytes;
  uint8_t* const ring = table + (kCode == Code::kTable16 ? kPairTableBytes : 0);
  const uint64_t policy = StreamPolicy();
  SAGE_UNROLL
  for (int i = 0; i < kStages - 1; ++i) {
    if (kb_begin + i < kb_end) {
      FillStage<kCode, kFold>(p, ring + i * p.stage.bytes, kb_begin + i, policy);
    }
    AsyncCommit();
  }
  if constexpr (kCode == Code::kTable16) FillPairTable(table, layer.table);
  const int chunk_bytes = kRowBlock * RecordBytes(layer.wide, kFold == Fold::kOffset);
  float acc[kRowTiles][kWarpTiles][4] = {};
  TileSums sums;
  SAGE_ROLLED
  for (int i = 0; i < kRowTiles * kWarpTiles * 4; ++i) sums.value[i] = 0.0f;
  int at = 0, free = kStages - 1, kb = kb_begin;
  for (int part = first_part; part < last_part; ++part) {
    for (const int end = PartRange(layer.k_blocks, parts, part).end; kb < end; ++kb) {
      AsyncWait<kStages - 2>();
      SyncThreads();
      if (kb + kStages - 1 < kb_end) {
        FillStage<kCode, kFold>(p, ring + free * p.stage.bytes, kb + kStages - 1, policy);
      }
      AsyncCommit();
      const uint8_t* stage = ring + at * p.stage.bytes;
      const BlockView view{
          stage + row_warp * CodeBlockBytes(kCode) + lane * 16,
          stage + p.stage.activations + token_warp * kWarpTiles * ActivationTileBytes(kCode) + lane * 16,
          stage + p.stage.scales + row_warp * layer.chunks * chunk_bytes,
          reinterpret_cast<const float*>(stage + p.stage.sums) + token_warp * kWarpTiles * kTokenTile + lane % 4 * 2,
          chunk_bytes,
          kTileTokenWarps * kWarpTiles * kTokenTile};
      if (first_token < p.rows.M) BlockProduct<kCode, kWarpTiles, kFold>(layer, view, table + lane * 4, lane / 4, acc);
      at = at + 1 == kStages ? 0 : at + 1;
      free = free + 1 == kStages ? 0 : free + 1;
    }
    SAGE_UNROLL
    for (int i = 0; i < kRowTiles * kWarpTiles * 4; ++i) {
      float& own = acc[i / (kWarpTiles * 4)][i / 4 % kWarpTiles][i % 4];
      sums.value[i] = sums.value[i] + own;
      own = 0.0f;
    }
    if (split || part % kSliceParts != kSliceParts - 1) continue;
    const bool first = part < kSliceParts, last = part == parts - 1;
    ForEachOutput(p, first_row, first_token, sums, [&](int row, int token, volatile float& value) {
      float* to = p.out.out + token * p.out.stride + row;
      const float total = first ? value : *to + value;
      *to = last ? Finish(layer, p.rows, total, row, token) : total;
      value = 0.0f;
    });
  }
  if (!split) return;
  const int64_t rows = static_cast<int64_t>(layer.row_blocks) * kRowBlock;
  const int64_t slice_stride = rows * p.rows.M;
  ForEachOutput(p, first_row, first_token, sums, [&](int row, int token, volatile float& value) {
    StoreFar(p.out.workspace + BlockZ() * slice_stride + token * rows + row, value);
  });
  if (!IsLastBlock(p.out.counters + BlockY() * static_cast<int>(gridDim.x) + BlockX(), layer.slices,
                   reinterpret_cast<uint32_t*>(shared)))
    return;
  ForEachOutput(p, first_row, first_token, sums, [&](int row, int token, volatile float&) {
    float total = 0.0f;
    SAGE_ROLLED
    for (int s = 0; s < layer.slices; ++s) total += LoadFar(p.out.workspace + s * slice_stride + token * rows + row);
    p.out.out[token * p.out.stride + row] = Finish(layer, p.rows, total, row, token);
  });
}

template <Code kCode, Fold kFold>
LaunchShape ShapeTile(const PackedLayer& layer, const PreparedRows& rows, const LinearOutput& out,
                      const LaunchLimits& limits) {
  constexpr int kTokens = kBlockTiles * kTokenTile;
  LaunchShape shape;
  shape.stage = StageOf(kCode, kTileRowWarps, kBlockTiles, layer.chunks,
                        RecordBytes(layer.wide, kFold == Fold::kOffset), kFold != Fold::kScale);
  shape.shared_bytes = kFlagBytes + (kCode == Code::kTable16 ? kPairTableBytes : 0) +
                       TileStages(kCode) * static_cast<size_t>(shape.stage.bytes);
  shape.x = static_cast<unsigned>((layer.row_blocks + kTileRowWarps - 1) / kTileRowWarps);
  shape.y = static_cast<unsigned>((rows.M + kTokens - 1) / kTokens);
  shape.threads = kTileThreads;
  const size_t workspace =
      static_cast<size_t>(layer.slices) * static_cast<size_t>(layer.row_blocks) * kRowBlock * rows.M * sizeof(float);
  const bool few = shape.x * shape.y < static_cast<unsigned>(limits.multiprocessors) * 2;
  if (few && rows.M <= kWorkspaceTokens && workspace <= out.workspace_bytes) {
    shape.z = static_cast<unsigned>(layer.slices);
  }
  shape.fits = shape.shared_bytes <= limits.shared_bytes;
  return shape;
}

}  // namespace sage::cuda
