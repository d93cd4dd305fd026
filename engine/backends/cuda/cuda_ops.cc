// Elementwise operators: a launch each, errors kept by the device.
#include "engine/backends/cuda/cuda_ops.h"

#include "engine/backends/cuda/kernels/rows.h"

namespace sage::cuda {
namespace {

void RmsNorm(StepContext& ctx, const float* x, int64_t x_stride, const float* weight, float eps, int64_t M, int64_t K,
             float* y, int64_t y_stride) {
  CudaDevice& device = DeviceOf(ctx);
  LaunchRmsNorm(x, x_stride, weight, eps, M, K, y, y_stride, device.stream());
  device.Check("rms_norm");
}

void HeadNorm(StepContext& ctx, float* x, int64_t stride, int heads, int64_t D, const float* weight, float eps,
              int64_t M) {
  CudaDevice& device = DeviceOf(ctx);
  LaunchHeadNorm(x, stride, heads, D, weight, eps, M, device.stream());
  device.Check("head_norm");
}

void Add(StepContext& ctx, float* x, const float* y, int64_t count) {
  CudaDevice& device = DeviceOf(ctx);
  LaunchAdd(x, y, count, device.stream());
  device.Check("add");
}

void SiluMul(StepContext& ctx, const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t M,
             int64_t F, float* out) {
  CudaDevice& device = DeviceOf(ctx);
  LaunchSiluMul(gate, gate_stride, up, up_stride, M, F, out, device.stream());
  device.Check("silu_mul");
}

void Rope(StepContext& ctx, float* x, int64_t stride, int heads, int64_t D, const float* cos, const float* sin,
          bool interleaved, int64_t M) {
  CudaDevice& device = DeviceOf(ctx);
  LaunchRope(x, stride, heads, D, cos, sin, interleaved, M, device.stream());
  device.Check("rope");
}

void AddRmsNorm(StepContext& ctx, float* x, const float* y, const float* weight, float eps, int64_t M, int64_t K,
                float* out) {
  CudaDevice& device = DeviceOf(ctx);
  LaunchAddRmsNorm(x, y, weight, eps, M, K, out, device.stream());
  device.Check("add_rms_norm");
}

}  // namespace

const Kernels& CudaKernels() {
  static const Kernels kernels = {.rms_norm = RmsNorm,
                                  .head_norm = HeadNorm,
                                  .add = Add,
                                  .silu_mul = SiluMul,
                                  .rope = Rope,
                                  .add_rms_norm = AddRmsNorm};
  return kernels;
}

}  // namespace sage::cuda
