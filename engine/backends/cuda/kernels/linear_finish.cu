// Starts the last pass of a product of bytes.
#include "engine/backends/cuda/kernels/linear_finish_kernel.h"
#include "engine/backends/cuda/kernels/linear_prepare.h"

namespace sage::cuda {

cudaError_t LaunchFinish(const FinishArgs& args, int64_t M, cudaStream_t stream) {
  for (int64_t first = 0; first < M; first += 65535) {  // of a grid's second dimension
    FinishArgs part = args;
    part.sums = static_cast<const uint8_t*>(args.sums) + first * args.sums_stride * 4;
    part.token_scale += first;
    part.out += first * args.out_stride;
    const int64_t rows = M - first < 65535 ? M - first : 65535;
    const dim3 grid(static_cast<unsigned>((args.N + 255) / 256), static_cast<unsigned>(rows));
    FinishProduct<<<grid, 256, 0, stream>>>(part);
  }
  return cudaGetLastError();
}

}  // namespace sage::cuda
