// Starts the expansion of packed rows to bf16.
#include "engine/backends/cuda/kernels/linear_expand_kernel.h"
#include "engine/backends/cuda/kernels/linear_launch.h"

namespace sage::cuda {
namespace {

template <Code kCode, Fold kFold>
cudaError_t Expand(const ExpandArgs& args, int row_blocks, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((args.layer.k_blocks + kExpandBlocks - 1) / kExpandBlocks),
                  static_cast<unsigned>(row_blocks));
  ExpandRows<kCode, kFold><<<grid, kExpandThreads, kCode == Code::kTable16 ? kPairTableBytes : 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchExpand(Code code, Fold fold, const PackedLayer& layer, int first_block, int row_blocks, int K,
                         uint16_t* to, cudaStream_t stream) {
  const ExpandArgs args{layer, first_block, K, to};
  const bool offset = fold == Fold::kOffset;
  switch (code) {
    case Code::kInt4:
      return offset ? Expand<Code::kInt4, Fold::kOffset>(args, row_blocks, stream)
                    : Expand<Code::kInt4, Fold::kScale>(args, row_blocks, stream);
    case Code::kInt8:
      return offset ? Expand<Code::kInt8, Fold::kOffset>(args, row_blocks, stream)
                    : Expand<Code::kInt8, Fold::kScale>(args, row_blocks, stream);
    case Code::kTable16:
      return Expand<Code::kTable16, Fold::kScale>(args, row_blocks, stream);
    case Code::kE4M3:
      return Expand<Code::kE4M3, Fold::kScale>(args, row_blocks, stream);
    case Code::kE5M2:
      return Expand<Code::kE5M2, Fold::kScale>(args, row_blocks, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace sage::cuda
