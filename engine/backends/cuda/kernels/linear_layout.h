// Where every code of a weight lies in memory, and which lane of a warp reads it: index arithmetic of the linear
// kernels, the same for the repacking, the kernels and the tests (plain C++, host and device).
//
// A weight [N, K] is cut into row blocks of 64 outputs and k blocks of 64 inputs. Codes are stored as
//   [row block][k block][row tile of 16][unit][lane of 32][16 bytes]
// so that a warp streams one k block of a row block as whole kilobytes, every lane reading 16 bytes of its own: what
// a lane copies to shared memory only that lane reads again. The bytes of a lane are the operand A of mma.m16n8k16
// (16-bit activations) or mma.m16n8k32 (8-bit activations) in the order its registers need; which of the 64 inputs
// stands in which column of the operand is free, as long as activations use the same order, so each lane takes runs of
// neighbours. Activations [M, K] are stored as operand B in the same way:
//   [k block][token tile of 8][unit][lane of 32][16 bytes]
#pragma once

#include <cstddef>
#include <cstdint>

// The same as in simt.h, which pure index arithmetic does without.
#if defined(__CUDACC__)
#define SAGE_HD __host__ __device__ __forceinline__
#else
#define SAGE_HD inline
#endif

namespace sage::cuda {

constexpr int kRowBlock = 64;     // outputs of a row block
constexpr int kRowTile = 16;      // outputs of an mma
constexpr int kRowTiles = 4;      // row tiles of a row block
constexpr int kBlockInputs = 64;  // inputs of a k block
constexpr int kTokenTile = 8;     // tokens of an mma
constexpr int kUnitBytes = 16 * 32;
constexpr int kSliceParts = 4;  // parts of a slice of K, summed in order; see linear_stream.h

// How codes are stored and what they are multiplied with.
enum class Code : int {
  kInt4,     // nibble + bias, f16 activations
  kTable16,  // nibble: entry of a table of sixteen f16, f16 activations
  kInt8,     // byte + bias, f16 activations
  kE4M3,     // f16 activations
  kE5M2,
  kInt4A8,  // two's complement nibble, int8 activations
  kInt8A8,  // int8 activations
  kE4M3A8,  // e4m3 activations
};

// What a partial sum of a chunk of inputs is multiplied with.
enum class Fold : int {
  kScale,       // scale[n, g]
  kOffset,      // scale[n, g], and offset[n, g] times the sum of the chunk's activations is added
  kTokenScale,  // scale[n, g] * token_scale[chunk, m]
};

constexpr bool IsNibble(Code code) { return code == Code::kInt4 || code == Code::kTable16 || code == Code::kInt4A8; }
constexpr bool HasByteActivations(Code code) {
  return code == Code::kInt4A8 || code == Code::kInt8A8 || code == Code::kE4M3A8;
}
// 16-byte pieces of a lane in one row tile and k block, of weights and of activations.
constexpr int WeightUnits(Code code) { return IsNibble(code) ? 1 : 2; }
constexpr int ActivationUnits(Code code) { return HasByteActivations(code) ? 1 : 2; }
constexpr int CodeBlockBytes(Code code) { return kRowTiles * WeightUnits(code) * kUnitBytes; }
constexpr int ActivationTileBytes(Code code) { return ActivationUnits(code) * kUnitBytes; }
// mma steps of a k block.
constexpr int Steps(Code code) { return HasByteActivations(code) ? 2 : 4; }

struct TileElement {
  int row = 0;  // of the row tile, 0..15
  int k = 0;    // of the k block, 0..63
};

// Code `index` (counted from the lowest bit) of the 16 bytes of `lane`.
SAGE_HD TileElement WeightElement(Code code, int lane, int unit, int index) {
  const int row = lane / 4, t = lane % 4;
  int step = 0, upper = 0, column = 0;  // upper: the second eight rows
  switch (code) {
    case Code::kInt4: {  // nibbles 0, 4: first register; 1, 5: second; so that masks 000f000f and 00f000f0 cut pairs
      const int p = index % 8;
      step = index / 8;
      upper = p & 1;
      column = t * 4 + (p >> 1 & 1) * 2 + (p >> 2);
      break;
    }
    case Code::kTable16: {  // each byte is one register: a pair of neighbours
      const int p = index % 8;
      step = index / 8;
      upper = p >> 1 & 1;
      column = t * 4 + (p >> 2) * 2 + (p & 1);
      break;
    }
    case Code::kInt8:
    case Code::kE4M3:
    case Code::kE5M2: {
      const int word = index / 4, p = index % 4;
      step = unit * 2 + word / 2;
      upper = p >> 1;
      column = t * 4 + word % 2 * 2 + (p & 1);
      break;
    }
    case Code::kInt4A8: {  // high nibbles: inputs 0..3 of the lane's eight, low nibbles: 4..7
      const int word = index / 8, p = index % 8;
      step = word / 2;
      upper = word % 2;
      column = t * 8 + (p % 2 == 1 ? 0 : 4) + p / 2;
      break;
    }
    case Code::kInt8A8:
    case Code::kE4M3A8: {
      const int word = index / 4;
      step = unit;
      upper = word % 2;
      column = t * 8 + word / 2 * 4 + index % 4;
      break;
    }
  }
  return {row + upper * 8, step * (HasByteActivations(code) ? 32 : 16) + column};
}

// Activation `index` of the 16 bytes of `lane`; `row` is the token of the tile.
SAGE_HD TileElement ActivationElement(Code code, int lane, int unit, int index) {
  const int t = lane % 4;
  if (HasByteActivations(code)) return {lane / 4, index / 8 * 32 + t * 8 + index % 8};
  return {lane / 4, (unit * 2 + index / 4) * 16 + t * 4 + index % 4};
}

// Byte of activation (token, k) of a value with `tiles` token tiles.
SAGE_HD size_t ActivationByte(Code code, int64_t tiles, int64_t token, int64_t k) {
  const int64_t kb = k / kBlockInputs, tile = token / kTokenTile;
  const int c = static_cast<int>(k % kBlockInputs), lane_row = static_cast<int>(token % kTokenTile) * 4;
  const int units = ActivationUnits(code);
  int unit = 0, lane = 0, byte = 0;
  if (HasByteActivations(code)) {
    lane = lane_row + c % 32 / 8;
    byte = c / 32 * 8 + c % 8;
  } else {
    unit = c / 32;
    lane = lane_row + c % 16 / 4;
    byte = (c / 16 % 2 * 4 + c % 4) * 2;
  }
  return static_cast<size_t>(((kb * tiles + tile) * units + unit) * kUnitBytes + lane * 16 + byte);
}

// K blocks [begin, end) of part `part` of all `parts` (slices * kSliceParts).
struct BlockRange {
  int begin = 0, end = 0;
};
SAGE_HD BlockRange PartRange(int k_blocks, int parts, int part) {
  return {static_cast<int>(static_cast<int64_t>(k_blocks) * part / parts),
          static_cast<int>(static_cast<int64_t>(k_blocks) * (part + 1) / parts)};
}

// Slices that K is cut into: a function of the shape and the machine, never of the batch, so that a row's bits are the
// same in any batch. Chosen for one token, four blocks of four warps a multiprocessor.
inline int ChooseSlices(int row_blocks, int k_blocks, int multiprocessors) {
  const int64_t slots = static_cast<int64_t>(multiprocessors) * 4;
  int best = 1;
  int64_t best_cost = 0;
  for (int slices = 1; slices <= 16 && (slices == 1 || slices * kSliceParts <= k_blocks); ++slices) {
    const int64_t waves = (static_cast<int64_t>(row_blocks) * slices + slots - 1) / slots;
    // Filling the pipeline and adding the sums costs about two blocks.
    const int64_t cost = waves * ((k_blocks + slices * kSliceParts - 1) / (slices * kSliceParts) + 2);
    if (slices == 1 || cost < best_cost) {
      best = slices;
      best_cost = cost;
    }
  }
  return best;
}

// x / d for x < 2^16 and 2 <= d < 2^16 as a product: MulHigh(x, DivideMagic(d)). d = 1 has no such number.
inline uint32_t DivideMagic(uint32_t d) { return static_cast<uint32_t>(((uint64_t{1} << 32) + d - 1) / d); }

// Sums of a warp's accumulators in shared memory, [token][kSumStride] f32: the four lanes of a row write tokens two
// apart, and with 68 their banks do not meet.
constexpr int kSumStride = kRowBlock + 4;

// One scale of a layer: f16 or f32, with an offset behind it where the layer has offsets.
constexpr int RecordBytes(bool wide, bool offset) { return (wide ? 4 : 2) * (offset ? 2 : 1); }

// Shared memory begins with the flag of IsLastBlock, padded so that what follows stays aligned.
constexpr int kFlagBytes = 128;

// Bytes of one k block in flight, in this order: codes, activations, scales, sums.
struct StageLayout {
  int codes = 0, activations = 0, scales = 0, sums = 0, bytes = 0;  // offsets
};
SAGE_HD StageLayout StageOf(Code code, int row_blocks, int token_tiles, int chunks, int record_bytes, bool has_sums) {
  StageLayout s;
  s.activations = row_blocks * CodeBlockBytes(code);
  s.scales = s.activations + token_tiles * ActivationTileBytes(code);
  s.sums = s.scales + row_blocks * chunks * kRowBlock * record_bytes;
  s.bytes = s.sums + (has_sums ? chunks * token_tiles * kTokenTile * 4 : 0);
  return s;
}

}  // namespace sage::cuda
