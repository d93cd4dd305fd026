// One layer's product, by the number of tokens: streaming up to 16, tiles above. All give a row the same bits.
#pragma once

#include "engine/backends/cuda/kernels/linear_launch.h"
#include "engine/backends/cuda/kernels/linear_stream_kernel.h"
#include "engine/backends/cuda/kernels/linear_tile_kernel.h"

namespace sage::cuda {

template <typename Kernel, typename Args>
cudaError_t Launch(Kernel kernel, const LaunchShape& shape, const Args& args, cudaStream_t stream) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes));
  if (error != cudaSuccess) return error;
  kernel<<<dim3(shape.x, shape.y, shape.z), shape.threads, shape.shared_bytes, stream>>>(args);
  return cudaGetLastError();
}

template <Code kCode, Fold kFold>
cudaError_t LaunchLinear(const PackedLayer& layer, const PreparedRows& rows, const LinearOutput& out,
                         const LaunchLimits& limits, cudaStream_t stream) {
  if (rows.M <= kTokenTile) {
    const LaunchShape shape = ShapeStream<kCode, 1, kFold>(layer, out, limits);
    if (shape.fits) {
      return Launch(LinearStream<kCode, 1, kFold>, shape, StreamArgs{layer, rows, out, shape.stage}, stream);
    }
  } else if (rows.M <= kStreamTokens) {
    const LaunchShape shape = ShapeStream<kCode, 2, kFold>(layer, out, limits);
    if (shape.fits) {
      return Launch(LinearStream<kCode, 2, kFold>, shape, StreamArgs{layer, rows, out, shape.stage}, stream);
    }
  }
  const LaunchShape shape = ShapeTile<kCode, kFold>(layer, rows, out, limits);
  if (!shape.fits) return cudaErrorNotSupported;
  return Launch(LinearTile<kCode, kFold>, shape, TileArgs{layer, rows, out, shape.stage}, stream);
}

}  // namespace sage::cuda
