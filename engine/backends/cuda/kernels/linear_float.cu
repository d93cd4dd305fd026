// Float codes with f16 activations: tables of sixteen (NF4, FP4, E2M1), e4m3 and e5m2.
#include "engine/backends/cuda/kernels/linear_dispatch.h"

namespace sage::cuda {

cudaError_t LaunchTable16(const PackedLayer& layer, const PreparedRows& rows, const LinearOutput& out,
                          const LaunchLimits& limits, cudaStream_t stream) {
  return LaunchLinear<Code::kTable16, Fold::kScale>(layer, rows, out, limits, stream);
}

cudaError_t LaunchE4M3(const PackedLayer& layer, const PreparedRows& rows, const LinearOutput& out,
                       const LaunchLimits& limits, cudaStream_t stream) {
  return LaunchLinear<Code::kE4M3, Fold::kScale>(layer, rows, out, limits, stream);
}

cudaError_t LaunchE5M2(const PackedLayer& layer, const PreparedRows& rows, const LinearOutput& out,
                       const LaunchLimits& limits, cudaStream_t stream) {
  return LaunchLinear<Code::kE5M2, Fold::kScale>(layer, rows, out, limits, stream);
}

}  // namespace sage::cuda
