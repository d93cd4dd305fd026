// KV pages on the device: where a step's sequences are placed, and the kernels of each format.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/backend.h"
#include "engine/backends/cuda/attention_plan.h"
#include "engine/backends/cuda/device.h"

namespace sage::cuda {

// A plan and its copy on the device, in memory that is kept for the next step.
struct PlacedPlan {
  AttentionPlan plan;
  DeviceBuffer words, states;

  absl::Status Place(absl::Span<const SequenceSlice> sequences, const KvLayout& layout, CudaDevice& device);
};

// The kernel of a strategy; refusals name every kernel and why.
absl::StatusOr<std::unique_ptr<KvKernel>> BindKvPages(std::string_view kv_strategy, const KvLayout& layout,
                                                      CudaDevice& device, std::vector<KernelRefusal>* refused);
std::vector<std::string> KvKernelNames();

}  // namespace sage::cuda
