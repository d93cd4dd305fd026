// From stored codes to the registers of operand A, bit by bit: runs on the device and, with the same results, on the
// host.
#pragma once

#include "engine/backends/cuda/kernels/linear_layout.h"

#if !defined(__CUDA_ARCH__)
#include "engine/tensor/float_convert.h"
#endif

namespace sage::cuda {

constexpr uint32_t kMagic1024 = 0x64006400u;  // f16 1024 twice: its last ten bits count in ones

// Layer constants of decoding. Pairs are two equal f16.
struct DecodeConstants {
  uint32_t low = 0;   // nibbles: 1024 + bias; bytes: 1024 + bias
  uint32_t high = 0;  // nibbles: -(64 + bias)
  // A number of the layer only so that the compiler keeps it in a register instead of in two instructions.
  uint32_t magic = kMagic1024;
};

constexpr uint32_t kSixteenth = 0x2c002c00u;

// Bytes of a table of all pairs: entry [byte][lane], so that no two lanes meet in a bank.
constexpr int kPairTableBytes = 256 * 32 * 4;

namespace half2 {

#if defined(__CUDA_ARCH__)
__device__ __forceinline__ uint32_t Sub(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
__device__ __forceinline__ uint32_t Fma(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
// (q & kMask) | magic in one instruction: `magic` must come from a register, since only one operand may be immediate.
template <uint32_t kMask>
__device__ __forceinline__ uint32_t Mark(uint32_t q, uint32_t magic) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(q), "n"(kMask), "r"(magic));
  return d;
}
__device__ __forceinline__ uint32_t Permute(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
#else
template <typename Fn>
inline uint32_t ByHalf(Fn fn) {
  return FloatToF16(fn(0)) | static_cast<uint32_t>(FloatToF16(fn(16))) << 16;
}
inline float Half(uint32_t pair, int shift) { return F16ToFloat(static_cast<uint16_t>(pair >> shift)); }
inline uint32_t Sub(uint32_t a, uint32_t b) {
  return ByHalf([&](int shift) { return Half(a, shift) - Half(b, shift); });
}
// Exact in f32 for the numbers met here, so one rounding.
inline uint32_t Fma(uint32_t a, uint32_t b, uint32_t c) {
  return ByHalf([&](int shift) { return Half(a, shift) * Half(b, shift) + Half(c, shift); });
}
template <uint32_t kMask>
inline uint32_t Mark(uint32_t q, uint32_t magic) {
  return (q & kMask) | magic;
}
inline uint32_t Permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t d = 0;
  for (int i = 0; i < 4; ++i) {
    d |= static_cast<uint32_t>(bytes >> (selector >> (4 * i) & 7) * 8 & 255) << (8 * i);
  }
  return d;
}
#endif

}  // namespace half2

// Two e4m3 codes, each in the upper byte of a half, to f16 times 2^-8 (subnormals too: exponents move as they are).
SAGE_HD uint32_t PairFromE4M3(uint32_t x) { return (x & 0x80008000u) | (x >> 1 & 0x3f803f80u); }

// Registers of operand A for one mma step of a row tile. `words` are the lane's 4 (nibbles) or 8 words of the k block;
// `table` is the lane's column of the table of pairs (kTable16).
template <Code kCode>
SAGE_HD void DecodeStep(const uint32_t* words, int step, const DecodeConstants& constants, const uint8_t* table,
                        uint32_t* a) {
  if constexpr (kCode == Code::kInt4) {
    const uint32_t q = words[step], upper = q >> 8;
    a[0] = half2::Sub(half2::Mark<0x000f000fu>(q, constants.magic), constants.low);
    a[1] = half2::Fma(half2::Mark<0x00f000f0u>(q, constants.magic), kSixteenth, constants.high);
    a[2] = half2::Sub(half2::Mark<0x000f000fu>(upper, constants.magic), constants.low);
    a[3] = half2::Fma(half2::Mark<0x00f000f0u>(upper, constants.magic), kSixteenth, constants.high);
  } else if constexpr (kCode == Code::kTable16) {
    const uint32_t q = words[step];
    for (int i = 0; i < 4; ++i) a[i] = *reinterpret_cast<const uint32_t*>(table + (q >> (8 * i) & 255u) * 128);
  } else if constexpr (kCode == Code::kInt8) {
    for (int i = 0; i < 2; ++i) {
      const uint32_t q = words[step * 2 + i];
      a[i * 2] = half2::Sub(half2::Permute(q, constants.magic, 0x5150), constants.low);
      a[i * 2 + 1] = half2::Sub(half2::Permute(q, constants.magic, 0x5352), constants.low);
    }
  } else if constexpr (kCode == Code::kE4M3 || kCode == Code::kE5M2) {
    for (int i = 0; i < 2; ++i) {
      const uint32_t q = words[step * 2 + i];
      const uint32_t first = half2::Permute(q, 0, 0x1404), second = half2::Permute(q, 0, 0x3424);
      a[i * 2] = kCode == Code::kE4M3 ? PairFromE4M3(first) : first;
      a[i * 2 + 1] = kCode == Code::kE4M3 ? PairFromE4M3(second) : second;
    }
  } else if constexpr (kCode == Code::kInt4A8) {
    for (int i = 0; i < 2; ++i) {
      const uint32_t q = words[step * 2 + i];
      a[i] = q & 0xf0f0f0f0u;  // 16 times the code
      a[i + 2] = q << 4 & 0xf0f0f0f0u;
    }
  } else {
    for (int i = 0; i < 4; ++i) a[i] = words[step * 4 + i];
  }
}

// What a decoded code must be multiplied with to be the code's value.
constexpr float DecodeFactor(Code code) {
  return code == Code::kE4M3 ? 256.0f : code == Code::kInt4A8 ? 0.0625f : 1.0f;
}

}  // namespace sage::cuda
