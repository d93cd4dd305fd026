// Attention over KV pages and their storing, launched for the format and head size at hand.
#include "engine/backends/cuda/kernels/attention.h"
#include "engine/backends/cuda/kernels/attention_kernel.h"
#include "engine/backends/cuda/kernels/kv_store_kernel.h"

namespace sage::cuda {
namespace {

template <KvStore kStore, int kD>
void Launch(const AttentionKernelArgs& args, int32_t splits, int32_t items, bool combines, cudaStream_t stream) {
  const auto heads = static_cast<unsigned>(args.KH), count = static_cast<unsigned>(items);
  const dim3 grid(count, heads, static_cast<unsigned>(splits));
  AttentionKernel<kStore, kD><<<grid, 128, AttentionSharedBytes(kStore, kD), stream>>>(args);
  if (combines) AttentionCombineKernel<kD><<<dim3(count, heads), 128, 0, stream>>>(args);
}

template <int kD>
void LaunchStore(KvStore store, const AttentionKernelArgs& args, int32_t splits, int32_t items, bool combines,
                 cudaStream_t stream) {
  switch (store) {
    case KvStore::kFp8:
      return Launch<KvStore::kFp8, kD>(args, splits, items, combines, stream);
    case KvStore::kInt8:
      return Launch<KvStore::kInt8, kD>(args, splits, items, combines, stream);
    case KvStore::kBf16:
      return Launch<KvStore::kBf16, kD>(args, splits, items, combines, stream);
    case KvStore::kF32:
      return Launch<KvStore::kF32, kD>(args, splits, items, combines, stream);
  }
}

}  // namespace

void LaunchKvStore(const KvStoreArgs& args, int32_t KH, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.M), static_cast<unsigned>(KH), 2);
  KvStoreKernel<<<grid, 32, static_cast<size_t>(args.Dp) * sizeof(float), stream>>>(args);
}

void LaunchAttention(KvStore store, const AttentionKernelArgs& args, int32_t splits, int32_t items, bool combines,
                     cudaStream_t stream) {
  if (args.D <= 64) return LaunchStore<64>(store, args, splits, items, combines, stream);
  LaunchStore<128>(store, args, splits, items, combines, stream);
}

}  // namespace sage::cuda
