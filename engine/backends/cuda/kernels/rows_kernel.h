// Elementwise operators over the rows of a step: norms, rotation, gated product, sums, conversions, embedding rows.
#pragma once

#include "engine/backends/cuda/simt.h"

namespace sage::cuda {

SAGE_DEVICE float WarpSum(float x) {
  for (int mask = 16; mask > 0; mask /= 2) x += ShuffleXor(x, mask);
  return x;
}

// The sum over a block of 256 threads, the same in all of them; shared memory [8] f32.
SAGE_DEVICE float BlockSum(float sum) {
  const int thread = static_cast<int>(threadIdx.x);
  auto* const parts = reinterpret_cast<float*>(SharedMemory());
  sum = WarpSum(sum);
  if (thread % 32 == 0) parts[thread / 32] = sum;
  SyncThreads();
  float all = 0;
  for (int w = 0; w < 8; ++w) all += parts[w];
  return all;
}

// A block a row. y = x * rsqrt(mean(x^2) + eps) * weight.
SAGE_KERNEL(256, 4)
void RmsNormKernel(const float* x, int64_t x_stride, const float* weight, float eps, int32_t K, float* y,
                   int64_t y_stride) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const float* const from = x + blockIdx.x * x_stride;
  float* const to = y + blockIdx.x * y_stride;
  float sum = 0;
  for (int32_t k = thread; k < K; k += 256) sum += from[k] * from[k];
  const float factor = 1.0f / sqrtf(BlockSum(sum) / static_cast<float>(K) + eps);
  for (int32_t k = thread; k < K; k += 256) to[k] = from[k] * factor * weight[k];
}

// The same of x + y, which x becomes.
SAGE_KERNEL(256, 4)
void AddRmsNormKernel(float* x, const float* y, const float* weight, float eps, int32_t K, float* out) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  const int64_t row = int64_t{blockIdx.x} * K;
  float sum = 0;
  for (int32_t k = thread; k < K; k += 256) {
    const float value = x[row + k] + y[row + k];
    x[row + k] = value;
    sum += value * value;
  }
  // Each thread reads back what it wrote itself.
  const float factor = 1.0f / sqrtf(BlockSum(sum) / static_cast<float>(K) + eps);
  for (int32_t k = thread; k < K; k += 256) out[row + k] = x[row + k] * factor * weight[k];
}

// A warp a head of a row, in place. Grid: [M, heads].
SAGE_KERNEL(32, 16)
void HeadNormKernel(float* x, int64_t stride, int32_t D, const float* weight, float eps) {
  float* const head = x + blockIdx.x * stride + blockIdx.y * static_cast<int64_t>(D);
  const auto lane = static_cast<int32_t>(threadIdx.x);
  float sum = 0;
  for (int32_t d = lane; d < D; d += 32) sum += head[d] * head[d];
  const float factor = 1.0f / sqrtf(WarpSum(sum) / static_cast<float>(D) + eps);
  for (int32_t d = lane; d < D; d += 32) head[d] = head[d] * factor * weight[d];
}

SAGE_KERNEL(256, 4)
void AddKernel(float* x, const float* y, int64_t count) {
  const int64_t at = (int64_t{blockIdx.x} * 256 + threadIdx.x) * 4;
  for (int64_t i = at; i < count && i < at + 4; ++i) x[i] += y[i];
}

SAGE_DEVICE float Silu(float x) { return x / (1.0f + Exp2(-1.4426950408889634f * x)); }

// Grid: [M, ceil(F / 256)].
SAGE_KERNEL(256, 4)
void SiluMulKernel(const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t F, float* out) {
  const int64_t f = int64_t{blockIdx.y} * 256 + threadIdx.x, m = blockIdx.x;
  if (f < F) out[m * F + f] = Silu(gate[m * gate_stride + f]) * up[m * up_stride + f];
}

// Where pair i of a head lies: (i, i + D / 2), or (2 i, 2 i + 1).
constexpr int32_t RopeFirst(int32_t i, bool interleaved) { return interleaved ? 2 * i : i; }
constexpr int32_t RopeSecond(int32_t i, int32_t D, bool interleaved) { return interleaved ? 2 * i + 1 : i + D / 2; }

// Grid: [M, heads]; 64 threads.
SAGE_KERNEL(64, 16)
void RopeKernel(float* x, int64_t stride, int32_t D, const float* cos, const float* sin, bool interleaved) {
  float* const head = x + blockIdx.x * stride + blockIdx.y * static_cast<int64_t>(D);
  for (auto i = static_cast<int32_t>(threadIdx.x); i < D / 2; i += 64) {
    const float c = cos[blockIdx.x * static_cast<int64_t>(D / 2) + i];
    const float s = sin[blockIdx.x * static_cast<int64_t>(D / 2) + i];
    float& first = head[RopeFirst(i, interleaved)];
    float& second = head[RopeSecond(i, D, interleaved)];
    const float a = first, b = second;
    first = SubRn(MulRn(a, c), MulRn(b, s));
    second = AddRn(MulRn(b, c), MulRn(a, s));
  }
}

enum class RowType { kF32, kF16, kBf16 };

SAGE_DEVICE float RowValue(const void* rows, RowType type, int64_t i) {
  if (type == RowType::kF32) return static_cast<const float*>(rows)[i];
  const uint16_t bits = static_cast<const uint16_t*>(rows)[i];
  return type == RowType::kF16 ? F16Value(bits) : Bf16Value(bits);
}

// Grid: [M, ceil(K / 256)].
SAGE_KERNEL(256, 4)
void GatherKernel(const void* table, RowType type, const int32_t* ids, int64_t K, float* out) {
  const int64_t k = int64_t{blockIdx.y} * 256 + threadIdx.x, m = blockIdx.x;
  if (k < K) out[m * K + k] = RowValue(table, type, ids[m] * K + k);
}

// Rows of f32 as f16 (saturating) or bf16, without gaps. Grid: [M, ceil(K / 512)].
SAGE_KERNEL(256, 4)
void ConvertKernel(const float* x, int64_t stride, int64_t K, bool half, uint16_t* out) {
  const int64_t k = (int64_t{blockIdx.y} * 256 + threadIdx.x) * 2, m = blockIdx.x;
  if (k >= K) return;
  const float* const from = x + m * stride + k;
  const bool two = k + 1 < K;
  float low = from[0], high = two ? from[1] : 0.0f;
  if (half) {
    low = IsNan(low) ? low : fminf(65504.0f, fmaxf(-65504.0f, low));
    high = IsNan(high) ? high : fminf(65504.0f, fmaxf(-65504.0f, high));
  }
  const uint32_t both = half ? PackF16(low, high) : PackBf16(low, high);
  out[m * K + k] = static_cast<uint16_t>(both);
  if (two) out[m * K + k + 1] = static_cast<uint16_t>(both >> 16);
}

}  // namespace sage::cuda
