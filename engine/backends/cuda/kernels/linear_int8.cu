// 8-bit integer weights with f16 activations: int8, GPTQ, bitsandbytes, Q8_0 and split K-quants.
#include "engine/backends/cuda/kernels/linear_dispatch.h"

namespace sage::cuda {

cudaError_t LaunchInt8(const PackedLayer& layer, const PreparedRows& rows, const LinearOutput& out,
                       const LaunchLimits& limits, cudaStream_t stream) {
  return LaunchLinear<Code::kInt8, Fold::kScale>(layer, rows, out, limits, stream);
}

cudaError_t LaunchInt8Offset(const PackedLayer& layer, const PreparedRows& rows, const LinearOutput& out,
                             const LaunchLimits& limits, cudaStream_t stream) {
  return LaunchLinear<Code::kInt8, Fold::kOffset>(layer, rows, out, limits, stream);
}

}  // namespace sage::cuda
