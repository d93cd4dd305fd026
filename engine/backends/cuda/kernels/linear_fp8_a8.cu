// e4m3 weights with e4m3 activations on fp8 tensor cores (capability 8.9), summed in f32 every 64 inputs.
#include "engine/backends/cuda/kernels/linear_dispatch.h"

namespace sage::cuda {

cudaError_t LaunchE4M3A8(const PackedLayer& layer, const PreparedRows& rows, const LinearOutput& out,
                         const LaunchLimits& limits, cudaStream_t stream) {
  return LaunchLinear<Code::kE4M3A8, Fold::kScale>(layer, rows, out, limits, stream);
}

cudaError_t LaunchE4M3A8Groups(const PackedLayer& layer, const PreparedRows& rows, const LinearOutput& out,
                               const LaunchLimits& limits, cudaStream_t stream) {
  return LaunchLinear<Code::kE4M3A8, Fold::kTokenScale>(layer, rows, out, limits, stream);
}

}  // namespace sage::cuda
