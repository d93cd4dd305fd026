// The last pass of a product of bytes by a library: scales of token and output, bias, integers to f32.
#pragma once

#include "engine/backends/cuda/kernels/linear_rows.h"
#include "engine/backends/cuda/simt.h"

namespace sage::cuda {

// Grid: [ceil(N / 256), M].
SAGE_KERNEL(256, 4)
void FinishProduct(const FinishArgs p) {
  const int64_t n = int64_t{blockIdx.x} * 256 + threadIdx.x, m = blockIdx.y;
  if (n >= p.N) return;
  const int64_t at = m * p.sums_stride + n;
  const float sum =
      p.integers ? static_cast<float>(static_cast<const int32_t*>(p.sums)[at]) : static_cast<const float*>(p.sums)[at];
  const float value = MulRn(sum, MulRn(p.token_scale[m], p.channel_scale[n]));
  p.out[m * p.out_stride + n] = p.bias == nullptr ? value : AddRn(value, p.bias[n]);
}

}  // namespace sage::cuda
