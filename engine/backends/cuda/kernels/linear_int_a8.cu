// Integer weights with int8 activations: W4A8 and W8A8.
#include "engine/backends/cuda/kernels/linear_dispatch.h"

namespace sage::cuda {

cudaError_t LaunchInt4A8(const PackedLayer& layer, const PreparedRows& rows, const LinearOutput& out,
                         const LaunchLimits& limits, cudaStream_t stream) {
  return LaunchLinear<Code::kInt4A8, Fold::kScale>(layer, rows, out, limits, stream);
}

cudaError_t LaunchInt4A8Offset(const PackedLayer& layer, const PreparedRows& rows, const LinearOutput& out,
                               const LaunchLimits& limits, cudaStream_t stream) {
  return LaunchLinear<Code::kInt4A8, Fold::kOffset>(layer, rows, out, limits, stream);
}

cudaError_t LaunchInt8A8(const PackedLayer& layer, const PreparedRows& rows, const LinearOutput& out,
                         const LaunchLimits& limits, cudaStream_t stream) {
  return LaunchLinear<Code::kInt8A8, Fold::kScale>(layer, rows, out, limits, stream);
}

cudaError_t LaunchInt8A8Offset(const PackedLayer& layer, const PreparedRows& rows, const LinearOutput& out,
                               const LaunchLimits& limits, cudaStream_t stream) {
  return LaunchLinear<Code::kInt8A8, Fold::kOffset>(layer, rows, out, limits, stream);
}

}  // namespace sage::cuda
