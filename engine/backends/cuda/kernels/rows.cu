// Elementwise operators on the device.
#include "engine/backends/cuda/kernels/rows.h"
#include "engine/backends/cuda/kernels/rows_kernel.h"

namespace sage::cuda {
namespace {

unsigned Count(int64_t x) { return static_cast<unsigned>(x); }
unsigned Blocks(int64_t elements, int64_t each) { return Count((elements + each - 1) / each); }

}  // namespace

void LaunchRmsNorm(const float* x, int64_t x_stride, const float* weight, float eps, int64_t M, int64_t K, float* y,
                   int64_t y_stride, cudaStream_t stream) {
  RmsNormKernel<<<Count(M), 256, 8 * sizeof(float), stream>>>(x, x_stride, weight, eps, static_cast<int32_t>(K), y,
                                                              y_stride);
}

void LaunchAddRmsNorm(float* x, const float* y, const float* weight, float eps, int64_t M, int64_t K, float* out,
                      cudaStream_t stream) {
  AddRmsNormKernel<<<Count(M), 256, 8 * sizeof(float), stream>>>(x, y, weight, eps, static_cast<int32_t>(K), out);
}

void LaunchHeadNorm(float* x, int64_t stride, int heads, int64_t D, const float* weight, float eps, int64_t M,
                    cudaStream_t stream) {
  HeadNormKernel<<<dim3(Count(M), Count(heads)), 32, 0, stream>>>(x, stride, static_cast<int32_t>(D), weight, eps);
}

void LaunchAdd(float* x, const float* y, int64_t count, cudaStream_t stream) {
  AddKernel<<<Blocks(count, 1024), 256, 0, stream>>>(x, y, count);
}

void LaunchSiluMul(const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t M, int64_t F,
                   float* out, cudaStream_t stream) {
  SiluMulKernel<<<dim3(Count(M), Blocks(F, 256)), 256, 0, stream>>>(gate, gate_stride, up, up_stride, F, out);
}

void LaunchRope(float* x, int64_t stride, int heads, int64_t D, const float* cos, const float* sin, bool interleaved,
                int64_t M, cudaStream_t stream) {
  RopeKernel<<<dim3(Count(M), Count(heads)), 64, 0, stream>>>(x, stride, static_cast<int32_t>(D), cos, sin,
                                                              interleaved);
}

void LaunchGather(const void* table, int bits, bool half, const int32_t* ids, int64_t M, int64_t K, float* out,
                  cudaStream_t stream) {
  const RowType type = bits == 32 ? RowType::kF32 : half ? RowType::kF16 : RowType::kBf16;
  GatherKernel<<<dim3(Count(M), Blocks(K, 256)), 256, 0, stream>>>(table, type, ids, K, out);
}

void LaunchConvert(const float* x, int64_t stride, int64_t M, int64_t K, bool half, void* out, cudaStream_t stream) {
  ConvertKernel<<<dim3(Count(M), Blocks(K, 512)), 256, 0, stream>>>(x, stride, K, half, static_cast<uint16_t*>(out));
}

}  // namespace sage::cuda
