// Converts activations once a value.
#include "engine/backends/cuda/activation_forms.h"

#include "engine/backends/cuda/kernels/rows.h"

namespace sage::cuda {
namespace {

const void* Form(StepContext& ctx, const StepValue& x, CudaDevice& device, bool half) {
  const auto bytes = static_cast<size_t>(x.M * x.K) * 2;
  const void* const form = ctx.activations->Get(x.id, half ? "f16" : "bf16", bytes, [&](uint8_t* to) {
    LaunchConvert(x.data, x.stride, x.M, x.K, half, to, device.stream());
    device.Check("convert");
  });
  if (form == nullptr) device.Note(cudaErrorMemoryAllocation, "converted activations");
  return form;
}

}  // namespace

const __nv_bfloat16* Bf16Form(StepContext& ctx, const StepValue& x, CudaDevice& device) {
  return static_cast<const __nv_bfloat16*>(Form(ctx, x, device, false));
}

const __half* F16Form(StepContext& ctx, const StepValue& x, CudaDevice& device) {
  return static_cast<const __half*>(Form(ctx, x, device, true));
}

}  // namespace sage::cuda
