// Host emulator of the device interface of simt.h: a block's threads are fibers that run one after another, in an order
// drawn anew between any two points of synchronisation.
//
// Shared memory begins poisoned, asynchronous copies land when they are waited for and no earlier, and lanes of a warp
// that meet in different operations abort: a missing barrier or wait gives a wrong result here too. Launch runs a grid.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

namespace sage::cuda {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) int4 {
  int32_t x, y, z, w;
};
inline thread_local Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

constexpr size_t kStackBytes = 128 * 1024;

struct PendingCopy {
  void* to;
  uint8_t bytes[16];
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<uint8_t[]> stack;
  Dim3 thread;
  bool done = false;
  bool waiting = false;                          // at a barrier of the block or in an operation of the warp
  std::vector<std::vector<PendingCopy>> groups;  // committed, oldest first
  std::vector<PendingCopy> open;
};

// What the lanes of a warp bring to an operation and take from it.
struct Meeting {
  const char* operation = nullptr;
  int arrived = 0;
  uint8_t in[32][32];
  uint8_t out[32][32];
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  std::vector<uint8_t> shared;
  uint8_t* shared_begin = nullptr;
  std::function<void()> body;
  ucontext_t scheduler;
  Fiber* current = nullptr;
  int at_barrier = 0, live = 0;
};

inline thread_local Block* block = nullptr;

[[noreturn]] inline void Fail(const char* what, const char* detail) {
  std::fprintf(stderr, "simt: %s (%s)\n", what, detail);
  std::abort();
}

inline int LinearThread() {
  return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}

inline void Yield() {
  Fiber* const self = block->current;
  swapcontext(&self->context, &block->scheduler);
  threadIdx = self->thread;
}

inline void ReleaseBarrier() {
  for (Fiber& fiber : block->fibers) {
    if (fiber.waiting) fiber.waiting = false;
  }
  block->at_barrier = 0;
}

inline void Entry() {
  Fiber* const self = block->current;
  threadIdx = self->thread;
  block->body();
  self->done = true;
  --block->live;
  if (block->at_barrier > 0 && block->at_barrier == block->live) ReleaseBarrier();
  swapcontext(&self->context, &block->scheduler);
}

// All 32 lanes bring `in` bytes; `work` runs once for the warp, then each lane takes its `out`.
template <typename In, typename Out, typename Work>
void Meet(const char* operation, const In& in, Out* out, const Work& work) {
  static_assert(sizeof(In) <= 32 && sizeof(Out) <= 32);
  const int thread = LinearThread(), lane = thread % 32;
  Meeting& meeting = block->warps[static_cast<size_t>(thread / 32)];
  if (meeting.arrived == 0) meeting.operation = operation;
  if (std::strcmp(meeting.operation, operation) != 0) Fail(meeting.operation, operation);
  std::memcpy(meeting.in[lane], &in, sizeof(In));
  if (++meeting.arrived == 32) {
    In all[32];
    Out results[32];
    for (int l = 0; l < 32; ++l) std::memcpy(static_cast<void*>(&all[l]), meeting.in[l], sizeof(In));
    work(all, results);
    for (int l = 0; l < 32; ++l) std::memcpy(meeting.out[l], &results[l], sizeof(Out));
    meeting.arrived = 0;
    for (int l = 0; l < 32; ++l) block->fibers[static_cast<size_t>(thread / 32 * 32 + l)].waiting = false;
  } else {
    block->current->waiting = true;
    Yield();
  }
  std::memcpy(static_cast<void*>(out), meeting.out[lane], sizeof(Out));
}

inline void RunBlock(std::mt19937& random) {
  Block& b = *block;
  std::vector<size_t> ready;
  while (b.live > 0) {
    ready.clear();
    for (size_t i = 0; i < b.fibers.size(); ++i) {
      if (!b.fibers[i].done && !b.fibers[i].waiting) ready.push_back(i);
    }
    if (ready.empty()) Fail("deadlock", "every thread waits for another");
    std::shuffle(ready.begin(), ready.end(), random);
    for (const size_t i : ready) {
      b.current = &b.fibers[i];
      swapcontext(&b.scheduler, &b.current->context);
    }
  }
}

// Apart from Launch, which getcontext must not seem to return into twice.
[[gnu::noinline]] inline void Begin(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, Entry, 0);
}

// Runs `body` for every thread of the grid, blocks in a random order.
inline void Launch(Dim3 grid, Dim3 threads, size_t shared_bytes, const std::function<void()>& body, uint32_t seed = 1) {
  std::mt19937 random(seed);
  const size_t count = size_t{threads.x} * threads.y * threads.z;
  if (count % 32 != 0) Fail("blocks must be whole warps", "launch");
  std::vector<Dim3> blocks;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) blocks.push_back({x, y, z});
    }
  }
  std::shuffle(blocks.begin(), blocks.end(), random);
  Block state;
  state.body = body;
  state.shared.resize(shared_bytes + 128);
  state.shared_begin = state.shared.data() + (128 - reinterpret_cast<uintptr_t>(state.shared.data()) % 128) % 128;
  state.fibers.resize(count);
  for (Fiber& fiber : state.fibers) fiber.stack = std::make_unique_for_overwrite<uint8_t[]>(kStackBytes);
  block = &state;
  gridDim = grid;
  blockDim = threads;
  for (const Dim3& at : blocks) {
    blockIdx = at;
    std::memset(state.shared.data(), 0xff, state.shared.size());
    state.warps.assign(count / 32, Meeting());
    state.live = static_cast<int>(count);
    state.at_barrier = 0;
    for (size_t i = 0; i < count; ++i) {
      Fiber& fiber = state.fibers[i];
      fiber.done = fiber.waiting = false;
      fiber.groups.clear();
      fiber.open.clear();
      const auto t = static_cast<unsigned>(i);
      fiber.thread = {t % threads.x, t / threads.x % threads.y, t / (threads.x * threads.y)};
      Begin(fiber);
    }
    RunBlock(random);
  }
  block = nullptr;
}

inline float F16Value(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u,
                 mantissa = bits & 1023u;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) {
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}
inline float Bf16Value(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

struct MmaIn {
  uint32_t a[4], b[2];
};
struct MmaOut {
  float d[4];
};

// The product alone; the caller adds it to its sums.
template <typename Value>
void Multiply(const MmaIn* in, MmaOut* out, const Value& value) {
  float a[16][16], b[16][8];
  for (int l = 0; l < 32; ++l) {
    const int g = l / 4, t = l % 4;
    for (int i = 0; i < 4; ++i) {
      for (int e = 0; e < 2; ++e) {
        a[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + e] = value(static_cast<uint16_t>(in[l].a[i] >> (16 * e)));
      }
    }
    for (int i = 0; i < 2; ++i) {
      for (int e = 0; e < 2; ++e) b[2 * t + 8 * i + e][g] = value(static_cast<uint16_t>(in[l].b[i] >> (16 * e)));
    }
  }
  for (int l = 0; l < 32; ++l) {
    for (int i = 0; i < 4; ++i) {
      const int row = l / 4 + 8 * (i / 2), column = 2 * (l % 4) + i % 2;
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      out[l].d[i] = sum;
    }
  }
}

template <typename Value>
void Mma(const char* name, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Value& value) {
  MmaOut out;
  Meet(name, MmaIn{{a[0], a[1], a[2], a[3]}, {b0, b1}}, &out,
       [&](const MmaIn* in, MmaOut* results) { Multiply(in, results, value); });
  for (int i = 0; i < 4; ++i) d[i] += out.d[i];
}

}  // namespace simt

inline void SyncThreads() {
  simt::Block& b = *simt::block;
  if (++b.at_barrier == b.live) {
    simt::ReleaseBarrier();
  } else {
    b.current->waiting = true;
    simt::Yield();
  }
}
inline void SyncWarp() {
  uint8_t none = 0;
  simt::Meet("syncwarp", none, &none, [](const uint8_t*, uint8_t* out) { std::memset(out, 0, 32); });
}
inline uint8_t* SharedMemory() { return simt::block->shared_begin; }

template <typename T>
T ShuffleXor(T value, int mask) {
  T out;
  simt::Meet("shuffle_xor", value, &out, [&](const T* in, T* results) {
    for (int l = 0; l < 32; ++l) results[l] = in[l ^ mask];
  });
  return out;
}
template <typename T>
T Shuffle(T value, int lane) {
  struct In {
    T value;
    int lane;
  };
  T out;
  simt::Meet("shuffle", In{value, lane}, &out, [](const In* in, T* results) {
    for (int l = 0; l < 32; ++l) results[l] = in[in[l].lane % 32].value;
  });
  return out;
}
inline bool AnyLane(bool value) {
  bool out;
  simt::Meet("any", value, &out, [](const bool* in, bool* results) {
    bool any = false;
    for (int l = 0; l < 32; ++l) any = any || in[l];
    for (int l = 0; l < 32; ++l) results[l] = any;
  });
  return out;
}

inline void MmaF16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  simt::Mma("mma_f16", d, a, b0, b1, simt::F16Value);
}
inline void MmaBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  simt::Mma("mma_bf16", d, a, b0, b1, simt::Bf16Value);
}
inline float F16Value(uint16_t bits) { return simt::F16Value(bits); }
inline float Bf16Value(uint16_t bits) { return simt::Bf16Value(bits); }
inline uint16_t F16Bits(float x) {
  const uint32_t raw = std::bit_cast<uint32_t>(x), sign = raw >> 16 & 0x8000u, size = raw & 0x7fffffffu;
  if (size > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7fffu);
  if (size >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above
  if (size < 0x38800000u) {                                               // below 2^-14: multiples of 2^-24
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(std::bit_cast<float>(size) * 0x1p24f)));
  }
  return static_cast<uint16_t>(sign | ((size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13));
}
inline uint16_t Bf16Bits(float x) {
  const uint32_t raw = std::bit_cast<uint32_t>(x);
  if ((raw & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((raw + 0x7fffu + (raw >> 16 & 1u)) >> 16);
}
inline uint32_t PackF16(float low, float high) { return F16Bits(low) | static_cast<uint32_t>(F16Bits(high)) << 16; }
inline uint32_t PackBf16(float low, float high) { return Bf16Bits(low) | static_cast<uint32_t>(Bf16Bits(high)) << 16; }
inline uint32_t SubF16(uint32_t a, uint32_t b) {
  const auto half = [](uint32_t x, int i) { return F16Value(static_cast<uint16_t>(x >> (16 * i))); };
  return PackF16(half(a, 0) - half(b, 0), half(a, 1) - half(b, 1));
}
inline uint32_t BytePermute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    out |= static_cast<uint32_t>(bytes >> (8 * ((selector >> (4 * i)) & 7u)) & 0xffu) << (8 * i);
  }
  return out;
}

inline void AsyncCopy16(void* to_shared, const void* from, bool valid) {
  simt::PendingCopy copy{to_shared, {}};
  if (valid) std::memcpy(copy.bytes, from, 16);
  simt::block->current->open.push_back(copy);
}
inline void AsyncCommit() {
  simt::Fiber& fiber = *simt::block->current;
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}
template <int kPending>
void AsyncWait() {
  simt::Fiber& fiber = *simt::block->current;
  while (fiber.groups.size() > kPending) {
    for (const simt::PendingCopy& copy : fiber.groups.front()) std::memcpy(copy.to, copy.bytes, 16);
    fiber.groups.erase(fiber.groups.begin());
  }
}

inline uint4 LoadOnce16(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) simt::Fail("misaligned load", "16 bytes");
  uint4 out;
  std::memcpy(&out, from, 16);
  return out;
}
inline float Exp2(float x) { return std::exp2(x); }
inline float Log2(float x) { return std::log2(x); }
inline float MulRn(float a, float b) { return a * b; }
inline float AddRn(float a, float b) { return a + b; }
inline float SubRn(float a, float b) { return a - b; }
inline float DivRn(float a, float b) { return a / b; }
inline uint32_t BitsOf(float x) { return std::bit_cast<uint32_t>(x); }
inline float FloatOf(uint32_t bits) { return std::bit_cast<float>(bits); }

}  // namespace sage::cuda
