// 4-bit integer weights with f16 activations: int4, GPTQ, AWQ, Q4_0 and Q4_1.
#include "engine/backends/cuda/kernels/linear_dispatch.h"

namespace sage::cuda {

cudaError_t LaunchInt4(const PackedLayer& layer, const PreparedRows& rows, const LinearOutput& out,
                       const LaunchLimits& limits, cudaStream_t stream) {
  return LaunchLinear<Code::kInt4, Fold::kScale>(layer, rows, out, limits, stream);
}

cudaError_t LaunchInt4Offset(const PackedLayer& layer, const PreparedRows& rows, const LinearOutput& out,
                             const LaunchLimits& limits, cudaStream_t stream) {
  return LaunchLinear<Code::kInt4, Fold::kOffset>(layer, rows, out, limits, stream);
}

}  // namespace sage::cuda
