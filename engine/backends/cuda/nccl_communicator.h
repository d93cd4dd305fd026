// Sums over GPUs through NCCL, which is opened when it is asked for: a build needs none, and a machine without it says
// so.
#pragma once

#include <array>
#include <memory>

#include "absl/status/statusor.h"
#include "engine/api/communicator.h"
#include "engine/backends/cuda/device.h"

namespace sage::cuda {

// What the ranks of one group share; rank 0 makes it and the others are handed it.
using NcclId = std::array<char, 128>;

// UNAVAILABLE (NCCL_UNAVAILABLE) when libnccl.so.2 or a function of it is missing.
absl::StatusOr<NcclId> MakeNcclId();
// Waits until every rank of the group has called it. `device` outlives the communicator.
absl::StatusOr<std::unique_ptr<Communicator>> OpenNccl(const NcclId& id, int rank, int size, CudaDevice& device);

}  // namespace sage::cuda
