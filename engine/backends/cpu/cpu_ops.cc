// Elementwise operators: rows inline for small steps, spread over threads for large ones.
#include "engine/backends/cpu/cpu_ops.h"

#include "absl/functional/function_ref.h"
#include "engine/backends/cpu/tiers.h"

namespace sage::cpu {
namespace {

// Below this many elements another thread costs more than it brings.
constexpr int64_t kInlineElements = 16 * 1024;

void ForRows(StepContext& ctx, int64_t M, int64_t columns, absl::FunctionRef<void(int64_t, int64_t)> body) {
  if (M == 1 || M * columns < kInlineElements) {
    body(0, M);
  } else {
    ctx.threads->ParallelFor(M, 1, body);
  }
}

void RmsNorm(StepContext& ctx, const float* x, int64_t x_stride, const float* weight, float eps, int64_t M, int64_t K,
             float* y, int64_t y_stride) {
  ForRows(ctx, M, K, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) HostTier().rms_norm_row(x + m * x_stride, weight, eps, K, y + m * y_stride);
  });
}

void HeadNorm(StepContext& ctx, float* x, int64_t stride, int heads, int64_t D, const float* weight, float eps,
              int64_t M) {
  ForRows(ctx, M, heads * D, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      for (int h = 0; h < heads; ++h) {
        float* head = x + m * stride + h * D;
        HostTier().rms_norm_row(head, weight, eps, D, head);
      }
    }
  });
}

void AddInPlace(StepContext& ctx, float* x, const float* y, int64_t count) {
  if (count < kInlineElements) {
    HostTier().add(x, y, count);
  } else {
    ctx.threads->ParallelFor(count, 4096,
                             [&](int64_t begin, int64_t end) { HostTier().add(x + begin, y + begin, end - begin); });
  }
}

void SiluMul(StepContext& ctx, const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t M,
             int64_t F, float* out) {
  ForRows(ctx, M, F, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m)
      HostTier().silu_mul_row(gate + m * gate_stride, up + m * up_stride, F, out + m * F);
  });
}

void Rope(StepContext& ctx, float* x, int64_t stride, int heads, int64_t D, const float* cos, const float* sin,
          bool interleaved, int64_t M) {
  ForRows(ctx, M, heads * D, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      for (int h = 0; h < heads; ++h) {
        HostTier().rope_row(x + m * stride + h * D, D, cos + m * (D / 2), sin + m * (D / 2), interleaved);
      }
    }
  });
}

void AddRmsNorm(StepContext& ctx, float* x, const float* y, const float* weight, float eps, int64_t M, int64_t K,
                float* out) {
  ForRows(ctx, M, K, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      HostTier().add(x + m * K, y + m * K, K);
      HostTier().rms_norm_row(x + m * K, weight, eps, K, out + m * K);
    }
  });
}

}  // namespace

const Kernels& CpuKernels() {
  static const Kernels kernels = {.rms_norm = RmsNorm,
                                  .head_norm = HeadNorm,
                                  .add = AddInPlace,
                                  .silu_mul = SiluMul,
                                  .rope = Rope,
                                  .add_rms_norm = AddRmsNorm};
  return kernels;
}

}  // namespace sage::cpu
