// Starts the conversion of activations (linear_prepare_kernel.h) and the packing of weights (linear_pack.h).
#pragma once

#include <cuda_runtime_api.h>

#include "engine/backends/cuda/kernels/linear_args.h"
#include "engine/backends/cuda/kernels/linear_pack.h"
#include "engine/backends/cuda/kernels/linear_rows.h"

namespace sage::cuda {

// Rows of `args.x` in one form; the norm or the gated product is part of it, so that no f32 row is written between.
cudaError_t LaunchPrepare(RowForm form, RowSource source, const PrepareArgs& args, int M, cudaStream_t stream);

// out = sums times both scales, plus bias: after a product of bytes by a library, in place or not.
cudaError_t LaunchFinish(const FinishArgs& args, int64_t M, cudaStream_t stream);

// `to` gets PackedUnits(code, row_blocks, k_blocks) units of 16 bytes; `source` points to device memory.
cudaError_t LaunchPack(Code code, const CodeSource& source, int row_blocks, int k_blocks, uint8_t* to,
                       cudaStream_t stream);

}  // namespace sage::cuda
