// Activations of a step in the types that tensor cores read, converted once a value and shared by every layer.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "engine/api/step_context.h"
#include "engine/backends/cuda/device.h"

namespace sage::cuda {

// [M, K] without gaps, rounded half to even (f16 saturates). Null when memory ran out: then Note was called and the
// layer returns at once.
const __nv_bfloat16* Bf16Form(StepContext& ctx, const StepValue& x, CudaDevice& device);
const __half* F16Form(StepContext& ctx, const StepValue& x, CudaDevice& device);

}  // namespace sage::cuda
