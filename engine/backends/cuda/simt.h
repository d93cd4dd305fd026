// What kernels are written in: threads, barriers, shuffles, matrix products and asynchronous copies, with one meaning
// on the device and in a host emulator.
//
// A kernel lives in a header (kernels/<name>_kernel.h), uses nothing but this file and plain C++ on bits, and is
// compiled twice: by nvcc into the .cu that launches it, and by the host compiler into tests, where simt_host.h runs
// every thread of a block as a fiber (tests/unit/backends/cuda). So the index arithmetic and the synchronisation are
// tested where there is no GPU. Shuffles and matrix products need all 32 lanes of a warp.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)

#define SAGE_DEVICE __device__ __forceinline__
#define SAGE_KERNEL(threads, blocks) __global__ __launch_bounds__(threads, blocks)
#define SAGE_UNROLL _Pragma("unroll")

namespace sage::cuda {

SAGE_DEVICE void SyncThreads() { __syncthreads(); }
SAGE_DEVICE void SyncWarp() { __syncwarp(); }
SAGE_DEVICE uint8_t* SharedMemory() {
  extern __shared__ __align__(128) uint8_t sage_shared_memory[];
  return sage_shared_memory;
}
template <typename T>
SAGE_DEVICE T ShuffleXor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <typename T>
SAGE_DEVICE T Shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
SAGE_DEVICE bool AnyLane(bool value) { return __any_sync(0xffffffffu, value); }

// d += a b with a [16, 16] by rows, b [16, 8] by columns, f32 sums; fragments as PTX lays them out (see MmaRow below).
SAGE_DEVICE void MmaF16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
SAGE_DEVICE void MmaBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Byte i of the result is byte (selector nibble i) of the eight bytes {a, b}.
SAGE_DEVICE uint32_t BytePermute(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }

// 16 bytes into shared memory; zeros when not `valid`. They are there after the group that holds them was waited for,
// and for other threads after a barrier behind that.
SAGE_DEVICE void AsyncCopy16(void* to_shared, const void* from, bool valid) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(to_shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}
SAGE_DEVICE void AsyncCommit() { asm volatile("cp.async.commit_group;"); }
// Until at most `kPending` of the last groups are under way.
template <int kPending>
SAGE_DEVICE void AsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Two floats as f16 or bf16, half to even, `low` in the low half.
SAGE_DEVICE uint32_t PackF16(float low, float high) {
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
SAGE_DEVICE uint32_t PackBf16(float low, float high) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
// a - b in both halves, f16.
SAGE_DEVICE uint32_t SubF16(uint32_t a, uint32_t b) {
  uint32_t out;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}
SAGE_DEVICE float F16Value(uint16_t bits) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(bits));
  return out;
}
SAGE_DEVICE float Bf16Value(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }

// Loads of bytes that are read once: kept out of the first level cache.
SAGE_DEVICE uint4 LoadOnce16(const void* from) { return __ldcs(static_cast<const uint4*>(from)); }

SAGE_DEVICE float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SAGE_DEVICE float Log2(float x) { return __log2f(x); }
// Products and sums that the compiler must not fuse, so that they equal the host's bit for bit.
SAGE_DEVICE float MulRn(float a, float b) { return __fmul_rn(a, b); }
SAGE_DEVICE float AddRn(float a, float b) { return __fadd_rn(a, b); }
SAGE_DEVICE float SubRn(float a, float b) { return __fsub_rn(a, b); }
SAGE_DEVICE float DivRn(float a, float b) { return __fdiv_rn(a, b); }
SAGE_DEVICE uint32_t BitsOf(float x) { return __float_as_uint(x); }
SAGE_DEVICE float FloatOf(uint32_t bits) { return __uint_as_float(bits); }

}  // namespace sage::cuda

#else

#define SAGE_DEVICE inline
#define SAGE_KERNEL(threads, blocks) inline
#define SAGE_UNROLL

#include "engine/backends/cuda/simt_host.h"

#endif

namespace sage::cuda {

// Fragment of lane l in the m16n8k16 products, g = l / 4, t = l % 4:
//   a[i] holds row g + 8 (i % 2), columns 2 t + 8 (i / 2) and the next;
//   b0 holds rows 2 t and the next of column g, b1 rows 2 t + 8 and the next;
//   d[i] holds row g + 8 (i / 2), column 2 t + i % 2.
SAGE_DEVICE bool IsNan(float x) { return (BitsOf(x) & 0x7fffffffu) > 0x7f800000u; }
constexpr int MmaRow(int lane, int i) { return lane / 4 + 8 * (i / 2); }
constexpr int MmaColumn(int lane, int i) { return 2 * (lane % 4) + i % 2; }

}  // namespace sage::cuda
