// Conversion of activations for the linear kernels, alone or as part of a norm or a gated product.
#include "engine/backends/cuda/kernels/linear_prepare.h"
#include "engine/backends/cuda/kernels/linear_prepare_kernel.h"

namespace sage::cuda {
namespace {

template <RowForm kForm, RowSource kSource>
cudaError_t Launch(const PrepareArgs& args, int M, cudaStream_t stream) {
  const size_t shared = PrepareShared(args.k_blocks);
  const auto kernel = PrepareRows<kForm, kSource>;
  if (shared > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  kernel<<<static_cast<unsigned>(M), kPrepareThreads, shared, stream>>>(args);
  return cudaGetLastError();
}

template <RowForm kForm>
cudaError_t LaunchForm(RowSource source, const PrepareArgs& args, int M, cudaStream_t stream) {
  switch (source) {
    case RowSource::kPlain:
      return Launch<kForm, RowSource::kPlain>(args, M, stream);
    case RowSource::kRmsNorm:
      return Launch<kForm, RowSource::kRmsNorm>(args, M, stream);
    case RowSource::kSiluMul:
      return Launch<kForm, RowSource::kSiluMul>(args, M, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t LaunchPrepare(RowForm form, RowSource source, const PrepareArgs& args, int M, cudaStream_t stream) {
  switch (form) {
    case RowForm::kF16:
      return LaunchForm<RowForm::kF16>(source, args, M, stream);
    case RowForm::kInt8:
      return LaunchForm<RowForm::kInt8>(source, args, M, stream);
    case RowForm::kE4M3:
      return LaunchForm<RowForm::kE4M3>(source, args, M, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sage::cuda
