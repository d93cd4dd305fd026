// The versions of the grid's inner loops, chosen by cpuid; like gemm_kernels.cc by target attribute, because only the
// inference kernels of engine/backends/cpu may be compiled with instruction-set flags.
#include "engine/solvers/grid_kernels.h"

#include <limits>

#include "engine/base/cpu_features.h"
#include "engine/base/vector_lanes.h"

namespace sage {
namespace {

constexpr int64_t kCheckEvery = 4 * kGridLanes;
constexpr float kLargestFloat = std::numeric_limits<float>::max();

namespace plain {
#define SAGE_LANE_TARGET
#include "engine/solvers/grid_body.h"
#undef SAGE_LANE_TARGET
}  // namespace plain

namespace avx2 {
#define SAGE_LANE_TARGET SAGE_TARGET_AVX2
#include "engine/solvers/grid_body.h"
#undef SAGE_LANE_TARGET
}  // namespace avx2

namespace avx512 {
#define SAGE_LANE_TARGET SAGE_TARGET_AVX512
#include "engine/solvers/grid_body.h"
#undef SAGE_LANE_TARGET
}  // namespace avx512

const GridKernels kPlainGrid = {"plain", plain::SquaredError, plain::NextMove};
const GridKernels kAvx2Grid = {"avx2", avx2::SquaredError, avx2::NextMove};
const GridKernels kAvx512Grid = {"avx512", avx512::SquaredError, avx512::NextMove};

}  // namespace

absl::Span<const GridKernels* const> RunnableGridKernels() {
  static const GridKernels* const kTiers[] = {&kPlainGrid, &kAvx2Grid, &kAvx512Grid};
  const CpuFeatures& cpu = HostCpu();
  return absl::MakeConstSpan(kTiers, cpu.avx512 ? 3 : cpu.avx2 ? 2 : 1);
}

const GridKernels& HostGridKernels() {
  static const GridKernels* const kernels = RunnableGridKernels().back();
  return *kernels;
}

}  // namespace sage
