// The elementwise operators of the CUDA backend, and the device that a step runs on.
#pragma once

#include "engine/api/backend.h"
#include "engine/backends/cuda/device.h"

namespace sage::cuda {

const Kernels& CudaKernels();
// The device of a step of this backend: its StepContext says so.
inline CudaDevice& DeviceOf(const StepContext& ctx) { return static_cast<CudaDevice&>(*ctx.memory); }

}  // namespace sage::cuda
