// Launchers of KV pages: storing new positions and attending over all.
#pragma once

#include <cuda_runtime_api.h>

#include "engine/backends/cuda/kernels/attention_args.h"

namespace sage::cuda {

void LaunchKvStore(const KvStoreArgs& args, int32_t KH, cudaStream_t stream);
// `splits` and `items` of the plan; D is at most 128.
void LaunchAttention(KvStore store, const AttentionKernelArgs& args, int32_t splits, int32_t items, bool combines,
                     cudaStream_t stream);

}  // namespace sage::cuda
