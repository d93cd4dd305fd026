// What the linear kernels take: a packed layer, converted activations, and where the result goes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/backends/cuda/kernels/linear_decode.h"

namespace sage::cuda {

// A packed layer on the device.
struct PackedLayer {
  const uint8_t* codes = nullptr;   // linear_layout.h
  const uint8_t* scales = nullptr;  // [row block][group][64] records
  const float* bias = nullptr;      // [N] or null
  const uint16_t* table = nullptr;  // [16] f16, kTable16
  int N = 0, row_blocks = 0, k_blocks = 0, slices = 1;
  int groups = 1;             // of a row
  int chunks = 1;             // sums of a k block, each folded with its own record: 1, 2 or 4
  int blocks_per_group = 1;   // k blocks that share a record (chunks == 1)
  uint32_t group_magic = 0;   // DivideMagic(blocks_per_group)
  bool wide = false;          // records are f32, not f16
  bool zero_is_code = false;  // the record's second number is a zero point z, the offset -(scale * z)
  float factor = 1.0f;        // of everything: the power of two that the scales lack, DecodeFactor
  DecodeConstants constants;
};

// Converted activations of one value; see linear_prepare.h.
struct PreparedRows {
  const uint8_t* codes = nullptr;      // operand B, `tiles` token tiles
  const float* token_scale = nullptr;  // [tiles * 8]
  const float* chunk = nullptr;        // [chunks of K, tiles * 8]: sums (kOffset) or scales (kTokenScale)
  int M = 0, tiles = 0;
};

struct LinearOutput {
  float* out = nullptr;  // [M, N]
  int64_t stride = 0;
  // Partial sums of slices; a layer with more rows than fit runs its slices one after the other (the same bits).
  float* workspace = nullptr;
  size_t workspace_bytes = 0;
  uint32_t* counters = nullptr;  // [LinearCounters(row_blocks)] zeros, zeros again afterwards
};

// Tokens that the streaming kernel takes; more go to the tile kernel. Both give a row the same bits.
constexpr int kStreamTokens = 16;
constexpr int kWorkspaceTokens = 256;  // more are never split over blocks

constexpr int LinearCounters(int row_blocks) { return row_blocks * 4; }

// What a launcher knows of the device; `shared_bytes` is what a block may use (opted in).
struct LaunchLimits {
  int multiprocessors = 0;
  size_t shared_bytes = 0;
};

// Grid and shared memory of a launch; `fits` is false when the device or the workspace is too small.
struct LaunchShape {
  bool fits = false;
  unsigned x = 1, y = 1, z = 1, threads = 0;
  size_t shared_bytes = 0;
  StageLayout stage;
};

}  // namespace sage::cuda
