// Launchers of the elementwise operators. Each enqueues on `stream` and returns; the caller checks the launch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace sage::cuda {

void LaunchRmsNorm(const float* x, int64_t x_stride, const float* weight, float eps, int64_t M, int64_t K, float* y,
                   int64_t y_stride, cudaStream_t stream);
void LaunchAddRmsNorm(float* x, const float* y, const float* weight, float eps, int64_t M, int64_t K, float* out,
                      cudaStream_t stream);
void LaunchHeadNorm(float* x, int64_t stride, int heads, int64_t D, const float* weight, float eps, int64_t M,
                    cudaStream_t stream);
void LaunchAdd(float* x, const float* y, int64_t count, cudaStream_t stream);
void LaunchSiluMul(const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t M, int64_t F,
                   float* out, cudaStream_t stream);
void LaunchRope(float* x, int64_t stride, int heads, int64_t D, const float* cos, const float* sin, bool interleaved,
                int64_t M, cudaStream_t stream);
// `bits` of a value of the table: 32, or 16 for f16 and bf16 (`half` tells which).
void LaunchGather(const void* table, int bits, bool half, const int32_t* ids, int64_t M, int64_t K, float* out,
                  cudaStream_t stream);
// To f16 (`half`) or bf16 without gaps.
void LaunchConvert(const float* x, int64_t stride, int64_t M, int64_t K, bool half, void* out, cudaStream_t stream);

}  // namespace sage::cuda
