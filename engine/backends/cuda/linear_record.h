// Records of the CUDA linear kernels. Each engine/backends/cuda/linear_<family>.cc defines one family, kLinear<Family>;
// the table of families is generated from the files (linear_dense.cc -> kLinearDense).
//
// A bound layer gets and gives device pointers: StepValue::data is f32 [M, K] on the device, out f32 [M, N]. Converted
// activations come from activation_forms.h, so that layers reading one value share them. Forward only enqueues on
// device.stream(): it may be recorded into a graph, so it must not wait, allocate or copy from the host.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/api/backend.h"
#include "engine/backends/cuda/device.h"

namespace sage::cuda {

struct LinearRecord {
  std::string_view name;      // "linear_int4_w4a16_sm80"
  std::string_view strategy;  // linear strategy it serves; several kernels may serve one
  int min_capability = 80;    // 10 * major + minor
  int max_capability = 999;
  // The accepting kernel with the largest rank for the asked priority is chosen.
  int latency_rank = 0, throughput_rank = 0, memory_rank = 0;
  // Empty when it accepts, else the reason in words and what would work ("needs a group of 16, 32, 64 or 128, got 48").
  // Capability bounds are checked before.
  std::string (*refuse)(const LinearKernelQuery& query, const DeviceTraits& device) = nullptr;
  // Uploads and repacks; `weight` may go when it returns. `device` outlives the layer.
  absl::StatusOr<std::unique_ptr<BoundLinear>> (*bind)(const LinearKernelQuery& query, const LinearWeight& weight,
                                                       CudaDevice& device) = nullptr;
};

}  // namespace sage::cuda

namespace sage {

struct CudaLinearFamily {
  absl::Span<const cuda::LinearRecord> records;
};
absl::Span<const CudaLinearFamily* const> CudaLinearFamilies();

}  // namespace sage
