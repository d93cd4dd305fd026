// What the kernels of KV pages are told: formats, places, strides. Plain data for host and device.
#pragma once

#include <cstdint>

#include "engine/backends/cuda/kv_plan.h"

namespace sage::cuda {

enum class KvStore { kFp8, kInt8, kBf16, kF32 };

// What differs between the 8-bit formats: masks of the shift into f16, and the factor the shift leaves.
struct KvCode {
  uint32_t keep = 0;     // of the byte in the upper half of its 16 bits
  uint32_t shifted = 0;  // of the same, one bit lower
  float factor = 1;      // value = f16 * factor
  float largest = 0;     // largest code as a value; 0 for formats without scales
  int mantissa = 0;      // bits of it, of the float formats
};
constexpr KvCode kE4m3Code = {0x80008000u, 0x3f803f80u, 256.0f, 448.0f, 3};
constexpr KvCode kE5m2Code = {0xff00ff00u, 0, 1.0f, 57344.0f, 2};
constexpr KvCode kInt8Code = {0, 0, 1.0f, 127.0f, 0};
constexpr KvCode kFloatCode = {};

struct AttentionKernelArgs {
  const PlacedSlice* slices = nullptr;
  const AttentionItem* items = nullptr;
  const int32_t* pages = nullptr;
  const uint8_t* arena = nullptr;
  KvOffsets offsets;
  KvCode code;
  const float* q = nullptr;
  float* out = nullptr;
  float* states = nullptr;  // rows of {sums [D], maximum, weight}, for items with several parts
  int64_t q_stride = 0, out_stride = 0;
  int32_t group = 1, KH = 1, D = 0, Dp = 0, page_tokens = 16, sink_pages = 0, window = 0;
  float score_factor = 1;  // q.k scale * log2(e)
};

constexpr bool IsByteStore(KvStore store) { return store == KvStore::kFp8 || store == KvStore::kInt8; }
constexpr int StoreBytes(KvStore store) { return IsByteStore(store) ? 1 : store == KvStore::kBf16 ? 2 : 4; }

// Shared memory: each warp's fragments of q, later each warp's sums.
constexpr int AttentionSharedBytes(KvStore store, int D) {
  const int fragments = D / 16 * 32 * 16 * (IsByteStore(store) ? 1 : 2), sums = 16 * (D + 4) * 4;
  return 4 * (fragments > sums ? fragments : sums);
}

struct KvStoreArgs {
  const PlacedSlice* slices = nullptr;
  const int32_t* row_slice = nullptr;  // [M], -1 for rows of padding
  const int32_t* pages = nullptr;
  uint8_t* arena = nullptr;
  KvOffsets offsets;
  KvCode code;
  KvStore store = KvStore::kBf16;
  const float* k = nullptr;
  const float* v = nullptr;
  const float* k_scales = nullptr;  // calibrated, [KH]; null: from the data
  const float* v_scales = nullptr;
  int64_t k_stride = 0, v_stride = 0;
  int32_t M = 0, D = 0, Dp = 0, page_tokens = 16, sink_pages = 0;
};

}  // namespace sage::cuda
