// Linear layers for up to 16 tokens: bound by the bytes of the weights, which every warp streams through a ring of its
// own.
//
// Grid: (row blocks, slices of K). The four warps of a block each take a quarter of the slice (a part); a lane reads
// only the 16 bytes it copied itself, so a stage needs no barrier but __syncwarp for the scales. The order of the sums
// is: chunks of a part, parts of a slice, slices; the last block of a row block to finish adds the slices.
#pragma once

#include <algorithm>

#include "engine/backends/cuda/kernels/linear_device.h"

namespace sage::cuda {

constexpr int kStreamThreads = 32 * kSliceParts;
// k blocks in flight of a warp.
constexpr int StreamStages(Code code) { return IsNibble(code) ? (code == Code::kTable16 ? 3 : 4) : 3; }

struct StreamArgs {
  PackedLayer layer;
  PreparedRows rows;
  LinearOutput out;
  StageLayout stage;
};

template <Code kCode, int kTiles, Fold kFold>
SAGE_DEVICE void IssueStage(const StreamArgs& p, uint8_t* stage, int row_block, int kb, int lane, uint64_t policy) {
  const PackedLayer& layer = p.layer;
  constexpr int kPieces = CodeBlockBytes(kCode) / kUnitBytes, kActs = ActivationUnits(kCode);
  const uint8_t* codes =
      layer.codes + (static_cast<int64_t>(row_block) * layer.k_blocks + kb) * CodeBlockBytes(kCode) + lane * 16;
  SAGE_UNROLL
  for (int i = 0; i < kPieces; ++i) {
    AsyncCopyOnce16(stage + i * kUnitBytes + lane * 16, codes + i * kUnitBytes, true, policy);
  }
  const uint8_t* activations =
      p.rows.codes + static_cast<int64_t>(kb) * p.rows.tiles * ActivationTileBytes(kCode) + lane * 16;
  SAGE_UNROLL
  for (int nt = 0; nt < kTiles; ++nt) {
    const bool valid = nt * kTokenTile + lane / 4 < p.rows.M;  // rows past M are not read
    SAGE_UNROLL
    for (int u = 0; u < kActs; ++u) {
      const int at = (nt * kActs + u) * kUnitBytes;
      AsyncCopy16(stage + p.stage.activations + at + lane * 16, activations + (valid ? at : 0), valid);
    }
  }
  const int chunk_bytes = kRowBlock * RecordBytes(layer.wide, kFold == Fold::kOffset);
  const uint8_t* records =
      layer.scales + (static_cast<int64_t>(row_block) * layer.groups + GroupOf(layer, kb)) * chunk_bytes;
  SAGE_ROLLED
  for (int i = lane * 16; i < layer.chunks * chunk_bytes; i += 32 * 16) {
    AsyncCopy16(stage + p.stage.scales + i, records + i, true);
  }
  if constexpr (kFold != Fold::kScale) {
    constexpr int kPieces16 = kTiles * 2;  // 8 f32 of a token tile are two pieces
    if (lane < layer.chunks * kPieces16) {
      const int chunk = lane / kPieces16, piece = lane % kPieces16;
      const float* from =
          p.rows.chunk + (static_cast<int64_t>(kb) * layer.chunks + chunk) * p.rows.tiles * kTokenTile + piece * 4;
      AsyncCopy16(stage + p.stage.sums + lane * 16, from, true);
    }
  }
}

// Adds the parts of this block's slice; then, in the last block of the row block, the slices.
template <int kTiles>
SAGE_DEVICE void CombineParts(const StreamArgs& p, const float* sums, int row_block, int slice, uint32_t* flag) {
  constexpr int kTokens = kTiles * kTokenTile, kPart = kTokens * kSumStride;
  constexpr int kEach = kTokens * kRowBlock / kStreamThreads;
  const int64_t slice_stride = static_cast<int64_t>(p.layer.row_blocks) * kTokens * kRowBlock;
  float* mine = p.out.workspace + static_cast<int64_t>(row_block) * kTokens * kRowBlock;
  float total[kEach];
  SAGE_UNROLL
  for (int j = 0; j < kEach; ++j) {
    const int i = j * kStreamThreads + Thread(), token = i / kRowBlock, row = i % kRowBlock;
    float sum = 0.0f;
    SAGE_UNROLL
    for (int part = 0; part < kSliceParts; ++part) sum += sums[part * kPart + token * kSumStride + row];
    total[j] = sum;
    if (p.layer.slices > 1 && token < p.rows.M) StoreFar(mine + slice * slice_stride + i, sum);
  }
  if (p.layer.slices > 1 && !IsLastBlock(p.out.counters + row_block, p.layer.slices, flag)) return;
  SAGE_UNROLL
  for (int j = 0; j < kEach; ++j) {
    const int i = j * kStreamThreads + Thread(), token = i / kRowBlock;
    const int row = row_block * kRowBlock + i % kRowBlock;
    if (token >= p.rows.M || row >= p.layer.N) continue;
    float sum = total[j];
    if (p.layer.slices > 1) {
      sum = 0.0f;
      SAGE_ROLLED
      for (int s = 0; s < p.layer.slices; ++s) sum += LoadFar(mine + s * slice_stride + i);
    }
    p.out.out[token * p.out.stride + row] = Finish(p.layer, p.rows, sum, row, token);
  }
}

template <Code kCode, int kTiles, Fold kFold>
SAGE_KERNEL(kStreamThreads, kTiles == 1 ? 4 : 3)
void LinearStream(const SAGE_GRID_CONSTANT StreamArgs p) {
  uint8_t* const shared = SharedMemory();
  constexpr int kStages = StreamStages(kCode);
  const int warp = Thread() / 32, lane = Thread() % 32;
  const int row_block = BlockX(), slice = BlockY();
  uint8_t* const table = shared + kFlagBytes;
  uint8_t* const ring = table + (kCode == Code::kTable16 ? kPairTableBytes : 0);
  uint8_t* own = ring + warp * kStages * p.stage.bytes;
  const BlockRange range = PartRange(p.layer.k_blocks, p.layer.slices * kSliceParts, slice * kSliceParts + warp);
  const uint64_t policy = StreamPolicy();
  SAGE_UNROLL
  for (int i = 0; i < kStages - 1; ++i) {
    if (range.begin + i < range.end) {
      IssueStage<kCode, kTiles, kFold>(p, own + i * p.stage.bytes, row_block, range.begin + i, lane, policy);
    }
    AsyncCommit();
  }
  if constexpr (kCode == Code::kTable16) {
    FillPairTable(table, p.layer.table);
    SyncThreads();
  }
  float acc[kRowTiles][kTiles][4] = {};
  int at = 0, free = kStages - 1;
  for (int kb = range.begin; kb < range.end; ++kb) {
    AsyncWait<kStages - 2>();
    SyncWarp();  // the other lanes' scales have landed, and nobody reads the stage that is filled next
    if (kb + kStages - 1 < range.end) {
      IssueStage<kCode, kTiles, kFold>(p, own + free * p.stage.bytes, row_block, kb + kStages - 1, lane, policy);
    }
    AsyncCommit();
    const uint8_t* stage = own + at * p.stage.bytes;
    const BlockView view{stage + lane * 16,
                         stage + p.stage.activations + lane * 16,
                         stage + p.stage.scales,
                         reinterpret_cast<const float*>(stage + p.stage.sums) + lane % 4 * 2,
                         kRowBlock * RecordBytes(p.layer.wide, kFold == Fold::kOffset),
                         kTiles * kTokenTile};
    BlockProduct<kCode, kTiles, kFold>(p.layer, view, table + lane * 4, lane / 4, acc);
    at = at + 1 == kStages ? 0 : at + 1;
    free = free + 1 == kStages ? 0 : free + 1;
  }
  AsyncWait<0>();
  SyncThreads();  // the ring becomes the place of the sums
  float* sums = reinterpret_cast<float*>(ring);
  float* part = sums + warp * kTiles * kTokenTile * kSumStride;
  SAGE_UNROLL
  for (int rt = 0; rt < kRowTiles; ++rt) {
    SAGE_UNROLL
    for (int nt = 0; nt < kTiles; ++nt) {
      SAGE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int token = nt * kTokenTile + lane % 4 * 2 + i % 2, row = rt * kRowTile + lane / 4 + i / 2 * 8;
        part[token * kSumStride + row] = acc[rt][nt][i];
      }
    }
  }
  SyncThreads();
  CombineParts<kTiles>(p, sums, row_block, slice, reinterpret_cast<uint32_t*>(shared));
}

template <Code kCode, int kTiles, Fold kFold>
LaunchShape ShapeStream(const PackedLayer& layer, const LinearOutput& out, const LaunchLimits& limits) {
  LaunchShape shape;
  shape.stage =
      StageOf(kCode, 1, kTiles, layer.chunks, RecordBytes(layer.wide, kFold == Fold::kOffset), kFold != Fold::kScale);
  const size_t ring = static_cast<size_t>(kSliceParts) * StreamStages(kCode) * static_cast<size_t>(shape.stage.bytes);
  const size_t sums = static_cast<size_t>(kSliceParts) * kTiles * kTokenTile * kSumStride * sizeof(float);
  shape.shared_bytes = kFlagBytes + (kCode == Code::kTable16 ? kPairTableBytes : 0) + std::max(ring, sums);
  shape.x = static_cast<unsigned>(layer.row_blocks);
  shape.y = static_cast<unsigned>(layer.slices);
  shape.threads = kStreamThreads;
  const size_t workspace = size_t{shape.x} * shape.y * kRowBlock * kTiles * kTokenTile * sizeof(float);
  shape.fits = shape.shared_bytes <= limits.shared_bytes && (layer.slices == 1 || workspace <= out.workspace_bytes);
  return shape;
}

}  // namespace sage::cuda
