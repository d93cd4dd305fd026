// How the linear kernels are started: raw device pointers, one stream, no allocation, no waiting.
#pragma once

#include <cuda_runtime_api.h>

#include "engine/backends/cuda/kernels/linear_args.h"

namespace sage::cuda {

// One launcher a weight format and fold.
using LinearLauncher = cudaError_t (*)(const PackedLayer&, const PreparedRows&, const LinearOutput&,
                                       const LaunchLimits&, cudaStream_t);

cudaError_t LaunchInt4(const PackedLayer&, const PreparedRows&, const LinearOutput&, const LaunchLimits&, cudaStream_t);
cudaError_t LaunchInt4Offset(const PackedLayer&, const PreparedRows&, const LinearOutput&, const LaunchLimits&,
                             cudaStream_t);
cudaError_t LaunchInt8(const PackedLayer&, const PreparedRows&, const LinearOutput&, const LaunchLimits&, cudaStream_t);
cudaError_t LaunchInt8Offset(const PackedLayer&, const PreparedRows&, const LinearOutput&, const LaunchLimits&,
                             cudaStream_t);
cudaError_t LaunchTable16(const PackedLayer&, const PreparedRows&, const LinearOutput&, const LaunchLimits&,
                          cudaStream_t);
cudaError_t LaunchE4M3(const PackedLayer&, const PreparedRows&, const LinearOutput&, const LaunchLimits&, cudaStream_t);
cudaError_t LaunchE5M2(const PackedLayer&, const PreparedRows&, const LinearOutput&, const LaunchLimits&, cudaStream_t);
cudaError_t LaunchInt4A8(const PackedLayer&, const PreparedRows&, const LinearOutput&, const LaunchLimits&,
                         cudaStream_t);
cudaError_t LaunchInt4A8Offset(const PackedLayer&, const PreparedRows&, const LinearOutput&, const LaunchLimits&,
                               cudaStream_t);
cudaError_t LaunchInt8A8(const PackedLayer&, const PreparedRows&, const LinearOutput&, const LaunchLimits&,
                         cudaStream_t);
cudaError_t LaunchInt8A8Offset(const PackedLayer&, const PreparedRows&, const LinearOutput&, const LaunchLimits&,
                               cudaStream_t);
// Capability 8.9 and later.
cudaError_t LaunchE4M3A8(const PackedLayer&, const PreparedRows&, const LinearOutput&, const LaunchLimits&,
                         cudaStream_t);
cudaError_t LaunchE4M3A8Groups(const PackedLayer&, const PreparedRows&, const LinearOutput&, const LaunchLimits&,
                               cudaStream_t);

// Row blocks [first_block, first_block + row_blocks) as rows of K bf16, for codes with 16-bit activations; K is a
// multiple of 4.
cudaError_t LaunchExpand(Code code, Fold fold, const PackedLayer& layer, int first_block, int row_blocks, int K,
                         uint16_t* to, cudaStream_t stream);

}  // namespace sage::cuda
