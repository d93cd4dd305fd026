// What the linear kernels share on the device: asynchronous copies, tensor-core instructions, and the product of one k
// block, which fixes the order of every sum.
#pragma once

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

#include <cmath>
#include <utility>

#include "engine/backends/cuda/kernels/linear_args.h"
#include "engine/backends/cuda/simt.h"

namespace sage::cuda {

// Weights are read once a step: they should not push activations out of L2. Copies as AsyncCopy16 does them.
#if defined(__CUDACC__)
#define SAGE_GRID_CONSTANT __grid_constant__
#define SAGE_ROLLED _Pragma("unroll 1")

SAGE_DEVICE uint64_t StreamPolicy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
SAGE_DEVICE void AsyncCopyOnce16(void* to_shared, const void* from, bool valid, uint64_t policy) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(to_shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from), "r"(bytes),
               "l"(policy)
               : "memory");
}
// d += a b with a [16, 32] by rows, b [32, 8] by columns.
SAGE_DEVICE void MmaS8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
SAGE_DEVICE void MmaE4M3(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
SAGE_DEVICE float HalfToFloat(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
SAGE_DEVICE uint16_t HalfOf(float value) { return __half_as_ushort(__float2half_rn(value)); }
SAGE_DEVICE float FusedRn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
SAGE_DEVICE uint32_t MulHigh(uint32_t a, uint32_t b) { return __umulhi(a, b); }
// Between blocks: past the first level cache.
SAGE_DEVICE void StoreFar(float* to, float value) { __stcg(to, value); }
SAGE_DEVICE float LoadFar(const float* from) { return __ldcg(from); }
SAGE_DEVICE uint32_t AddAtomic(uint32_t* to, uint32_t value) { return atomicAdd(to, value); }
SAGE_DEVICE void FenceDevice() { __threadfence(); }
#else
#define SAGE_GRID_CONSTANT
#define SAGE_ROLLED

inline uint64_t StreamPolicy() { return 0; }
inline void AsyncCopyOnce16(void* to, const void* from, bool valid, uint64_t) { AsyncCopy16(to, from, valid); }
template <typename Sum, typename Value>
void HostMmaBytes(const char* name, Sum (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Value value) {
  struct Out {
    Sum d[4];
  } out;
  simt::Meet(name, simt::MmaIn{{a[0], a[1], a[2], a[3]}, {b0, b1}}, &out, [&](const simt::MmaIn* in, Out* results) {
    for (int l = 0; l < 32; ++l) {
      for (int i = 0; i < 4; ++i) {
        const int row = l / 4 + 8 * (i / 2), column = 2 * (l % 4) + i % 2;
        Sum sum = 0;
        for (int k = 0; k < 32; ++k) {  // register k / 16 of lane (row, k % 16 / 4), byte k % 4
          const uint32_t x = in[row % 8 * 4 + k % 16 / 4].a[row / 8 + k / 16 * 2];
          const uint32_t y = in[column * 4 + k % 16 / 4].b[k / 16];
          sum += value(x >> k % 4 * 8 & 255u) * value(y >> k % 4 * 8 & 255u);
        }
        results[l].d[i] = sum;
      }
    }
  });
  for (int i = 0; i < 4; ++i) d[i] += out.d[i];
}
inline void MmaS8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  HostMmaBytes("mma_s8", d, a, b0, b1, [](uint32_t byte) { return static_cast<int>(static_cast<int8_t>(byte)); });
}
inline void MmaE4M3(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  HostMmaBytes("mma_e4m3", d, a, b0, b1,
               [](uint32_t byte) { return F16ToFloat(static_cast<uint16_t>(PairFromE4M3(byte << 8))) * 256.0f; });
}
inline float HalfToFloat(uint16_t bits) { return F16ToFloat(bits); }
inline uint16_t HalfOf(float value) { return FloatToF16(value); }
inline float FusedRn(float a, float b, float c) { return std::fma(a, b, c); }
inline uint32_t MulHigh(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
inline void StoreFar(float* to, float value) { *to = value; }
inline float LoadFar(const float* from) { return *from; }
inline uint32_t AddAtomic(uint32_t* to, uint32_t value) { return std::exchange(*to, *to + value); }
inline void FenceDevice() {}
#endif

SAGE_DEVICE int Thread() { return static_cast<int>(threadIdx.x); }
SAGE_DEVICE int BlockX() { return static_cast<int>(blockIdx.x); }
SAGE_DEVICE int BlockY() { return static_cast<int>(blockIdx.y); }
SAGE_DEVICE int BlockZ() { return static_cast<int>(blockIdx.z); }

// c += a b on tensor cores; a: 16 outputs, b: 8 tokens.
template <Code kCode, typename Sum>
SAGE_DEVICE void Mma(Sum (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kCode == Code::kE4M3A8) {
    MmaE4M3(c, a, b0, b1);
  } else if constexpr (kCode == Code::kInt4A8 || kCode == Code::kInt8A8) {
    MmaS8(c, a, b0, b1);
  } else {
    MmaF16(c, a, b0, b1);
  }
}

template <Code kCode>
struct PartialOf {
  using Type = float;
};
template <>
struct PartialOf<Code::kInt4A8> {
  using Type = int;
};
template <>
struct PartialOf<Code::kInt8A8> {
  using Type = int;
};

// The record of one output in a chunk: scale and, with kOffset, offset.
template <Fold kFold>
SAGE_DEVICE float2 LoadRecord(const uint8_t* records, int row, bool wide, bool zero_is_code) {
  float2 r{0.0f, 0.0f};
  if constexpr (kFold == Fold::kOffset) {
    if (wide) {
      r = reinterpret_cast<const float2*>(records)[row];
    } else {
      const uint32_t pair = reinterpret_cast<const uint32_t*>(records)[row];
      r.x = HalfToFloat(static_cast<uint16_t>(pair));
      r.y = HalfToFloat(static_cast<uint16_t>(pair >> 16));
    }
    if (zero_is_code) r.y = -MulRn(r.x, r.y);
  } else {
    r.x = wide ? reinterpret_cast<const float*>(records)[row]
               : HalfToFloat(reinterpret_cast<const uint16_t*>(records)[row]);
  }
  return r;
}

// Where a warp finds one k block of a row block in shared memory.
struct BlockView {
  const uint8_t* codes;        // of this lane: + lane * 16
  const uint8_t* activations;  // of this lane and the warp's first token tile
  const uint8_t* records;      // [chunk][64]
  const float* sums;           // [chunk][sum_stride], of this lane's first two tokens
  int chunk_bytes;             // of the records of a chunk
  int sum_stride;
};

// acc[rt][nt][4] += the k block's product. Within a chunk the tensor core adds step after step from zero; then one f32
// multiply-add a chunk. Nothing here depends on how many tokens there are or which warp does it.
template <Code kCode, int kTiles, Fold kFold>
SAGE_DEVICE void BlockProduct(const PackedLayer& layer, const BlockView& view, const uint8_t* table, int first_row,
                              float (&acc)[kRowTiles][kTiles][4]) {
  constexpr int kSteps = Steps(kCode), kUnits = WeightUnits(kCode), kActs = ActivationUnits(kCode);
  using Partial = typename PartialOf<kCode>::Type;
  uint4 b[kTiles][kActs];
  SAGE_UNROLL
  for (int nt = 0; nt < kTiles; ++nt) {
    SAGE_UNROLL
    for (int u = 0; u < kActs; ++u) {
      b[nt][u] = *reinterpret_cast<const uint4*>(view.activations + (nt * kActs + u) * kUnitBytes);
    }
  }
  SAGE_UNROLL
  for (int rt = 0; rt < kRowTiles; ++rt) {
    uint4 loaded[kUnits];
    SAGE_UNROLL
    for (int u = 0; u < kUnits; ++u) {
      loaded[u] = *reinterpret_cast<const uint4*>(view.codes + (rt * kUnits + u) * kUnitBytes);
    }
    const auto* words = reinterpret_cast<const uint32_t*>(loaded);
    Partial partial[kTiles][4] = {};
    const auto fold = [&](int chunk) {
      const uint8_t* records = view.records + chunk * view.chunk_bytes;
      const float2 upper = LoadRecord<kFold>(records, rt * kRowTile + first_row, layer.wide, layer.zero_is_code);
      const float2 lower = LoadRecord<kFold>(records, rt * kRowTile + first_row + 8, layer.wide, layer.zero_is_code);
      SAGE_UNROLL
      for (int nt = 0; nt < kTiles; ++nt) {
        float2 token{1.0f, 1.0f};
        if constexpr (kFold != Fold::kScale) {
          token = *reinterpret_cast<const float2*>(view.sums + chunk * view.sum_stride + nt * kTokenTile);
        }
        SAGE_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float2 record = i < 2 ? upper : lower;
          const float own = i % 2 == 0 ? token.x : token.y;
          float& sum = acc[rt][nt][i];
          const float value = static_cast<float>(partial[nt][i]);
          if constexpr (kFold == Fold::kTokenScale) {
            sum = FusedRn(record.x, MulRn(value, own), sum);
          } else {
            sum = FusedRn(record.x, value, sum);
            if constexpr (kFold == Fold::kOffset) sum = FusedRn(record.y, own, sum);
          }
          partial[nt][i] = 0;
        }
      }
    };
    SAGE_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      uint32_t a[4];
      DecodeStep<kCode>(words, step, layer.constants, table, a);
      SAGE_UNROLL
      for (int nt = 0; nt < kTiles; ++nt) {
        const auto* pairs = reinterpret_cast<const uint32_t*>(b[nt]) + step * 2;
        Mma<kCode>(partial[nt], a, pairs[0], pairs[1]);
      }
      const int done = (step + 1) * (4 / kSteps);  // in quarters of the k block
      if (done == 4) {
        fold(layer.chunks - 1);
      } else if (layer.chunks == 4 || (layer.chunks == 2 && done == 2)) {
        fold(layer.chunks == 4 ? done - 1 : 0);
      }
    }
  }
}

// The first group of a k block.
SAGE_DEVICE int GroupOf(const PackedLayer& layer, int kb) {
  if (layer.blocks_per_group == 1) return kb * layer.chunks;
  return static_cast<int>(MulHigh(static_cast<uint32_t>(kb), layer.group_magic));
}

// All pairs of the table of sixteen, once for each lane. Every thread of the block takes part; a barrier follows.
SAGE_DEVICE void FillPairTable(uint8_t* to, const uint16_t* table) {
  auto* words = reinterpret_cast<uint32_t*>(to);
  for (int i = Thread(); i < 256 * 32; i += static_cast<int>(blockDim.x)) {
    const int byte = i / 32;
    words[i] = table[byte & 15] | static_cast<uint32_t>(table[byte >> 4]) << 16;
  }
}

// Output (row, token) from the sum of all slices.
SAGE_DEVICE float Finish(const PackedLayer& layer, const PreparedRows& rows, float total, int row, int token) {
  const float value = MulRn(total, MulRn(rows.token_scale[token], layer.factor));
  return layer.bias == nullptr ? value : AddRn(value, layer.bias[row]);
}

// True in the block that is the last of `count` to come here with the same counter; what the others wrote to global
// memory before is then visible. The counter is zero again afterwards. Every thread of the block must call it; `flag`
// is a word of shared memory that nobody uses.
SAGE_DEVICE bool IsLastBlock(uint32_t* counter, int count, uint32_t* flag) {
  FenceDevice();
  SyncThreads();
  if (Thread() == 0) {
    *flag = AddAtomic(counter, 1u) == static_cast<uint32_t>(count - 1) ? 1 : 0;
    if (*flag != 0) *counter = 0;
  }
  SyncThreads();
  const bool last = *flag != 0;
  if (last) FenceDevice();
  return last;
}

}  // namespace sage::cuda
