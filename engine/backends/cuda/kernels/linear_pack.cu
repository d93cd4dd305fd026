// Packs the codes of a layer on the device, once when it is bound.
#include "engine/backends/cuda/kernels/linear_prepare.h"
#include "engine/backends/cuda/simt.h"

namespace sage::cuda {
namespace {

constexpr int kThreads = 256;

SAGE_KERNEL(kThreads, 4) void PackCodes(Code code, CodeSource source, int k_blocks, int64_t units, uint4* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= units) return;
  to[i] = uint4{PackWord(code, source, k_blocks, i, 0), PackWord(code, source, k_blocks, i, 1),
                PackWord(code, source, k_blocks, i, 2), PackWord(code, source, k_blocks, i, 3)};
}

}  // namespace

cudaError_t LaunchPack(Code code, const CodeSource& source, int row_blocks, int k_blocks, uint8_t* to,
                       cudaStream_t stream) {
  const int64_t units = PackedUnits(code, row_blocks, k_blocks);
  PackCodes<<<static_cast<unsigned>((units + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      code, source, k_blocks, units, reinterpret_cast<uint4*>(to));
  return cudaGetLastError();
}

}  // namespace sage::cuda
