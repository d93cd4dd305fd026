// One kernel for a layer, or every reason why none takes it.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "engine/api/backend.h"
#include "engine/backends/cuda/linear_record.h"

namespace sage::cuda {

// Every record of the families of this build.
std::vector<const LinearRecord*> LinearRecords();
// The record with the largest rank for the asked priority among those that accept; null with `refused` filled
// otherwise.
const LinearRecord* ChooseLinear(const LinearKernelQuery& query, const DeviceTraits& device,
                                 const std::vector<const LinearRecord*>& records, std::vector<KernelRefusal>* refused);
// UNIMPLEMENTED (NO_KERNEL): what was refused and why, and which strategies this device serves.
absl::Status NoLinearKernel(const LinearKernelQuery& query, const DeviceTraits& device,
                            const std::vector<const LinearRecord*>& records, const std::vector<KernelRefusal>& refused);

}  // namespace sage::cuda
