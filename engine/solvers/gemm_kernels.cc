// Tiles, merges and row updates for each processor tier, chosen by cpuid.
//
// The tiers are function multiversions by target attribute in this one file rather than files with instruction-set
// flags: calibration must be fast on any machine, yet only the inference kernels of engine/backends/cpu may be compiled
// with flags. No library template is instantiated in a marked function, so nothing of a tier can leak into other code.
#include "engine/solvers/gemm_kernels.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#include "engine/base/cpu_features.h"
#include "engine/base/vector_lanes.h"

namespace sage {
namespace {

namespace plain {
#define SAGE_LANE_TARGET
#include "engine/solvers/gemm_tile_body.h"
#undef SAGE_LANE_TARGET
}  // namespace plain

namespace avx2 {
#define SAGE_LANE_TARGET SAGE_TARGET_AVX2
#include "engine/solvers/gemm_tile_body.h"
#undef SAGE_LANE_TARGET
}  // namespace avx2

namespace avx512 {
#define SAGE_LANE_TARGET SAGE_TARGET_AVX512
#include "engine/solvers/gemm_tile_body.h"
#undef SAGE_LANE_TARGET
}  // namespace avx512

// Four lines of four values each, turned: to[i * stride + j] = from[j * line_stride + i].
using Four = float __attribute__((vector_size(16)));
void TurnFour(const float* from, int64_t line_stride, float* to, int64_t stride) {
  Four line[4];
  for (int l = 0; l < 4; ++l) std::memcpy(&line[l], from + l * line_stride, sizeof(Four));
  const Four a = __builtin_shufflevector(line[0], line[1], 0, 4, 1, 5);
  const Four b = __builtin_shufflevector(line[2], line[3], 0, 4, 1, 5);
  const Four c = __builtin_shufflevector(line[0], line[1], 2, 6, 3, 7);
  const Four d = __builtin_shufflevector(line[2], line[3], 2, 6, 3, 7);
  const Four out[4] = {__builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
                       __builtin_shufflevector(c, d, 0, 1, 4, 5), __builtin_shufflevector(c, d, 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) std::memcpy(to + i * stride, &out[i], sizeof(Four));
}

// Lines that lie one after the other, a cache line of each at a time: many lines at once would evict one another where
// their distance is a multiple of a power of two. Returns the depth that was packed.
template <int kWidth>
int64_t PackTurned(const float* source, int64_t line_stride, int64_t depth, float* sliver) {
  const int64_t whole = depth / 16 * 16;
  for (int64_t d = 0; d < whole; d += 16) {
    for (int l = 0; l < kWidth; l += 4) {
      // More lines than the processor follows by itself.
      for (int ahead = l; ahead < l + 4; ++ahead) __builtin_prefetch(source + ahead * line_stride + d + 32);
      for (int64_t i = d; i < d + 16; i += 4)
        TurnFour(source + l * line_stride + i, line_stride, sliver + i * kWidth + l, kWidth);
    }
  }
  return whole;
}

template <typename T, int kWidth>
void Pack(const T* source, int64_t line_stride, int64_t depth_stride, int lines, int64_t depth, T* sliver) {
  if (lines == kWidth && line_stride == 1) {
    for (int64_t d = 0; d < depth; ++d) std::memcpy(sliver + d * kWidth, source + d * depth_stride, kWidth * sizeof(T));
    return;
  }
  if (lines == kWidth) {
    int64_t begin = 0;
    if constexpr (std::is_same_v<T, float> && kWidth % 4 == 0) {
      if (depth_stride == 1) begin = PackTurned<kWidth>(source, line_stride, depth, sliver);
    }
    for (int64_t d = begin; d < depth; ++d) {
      for (int l = 0; l < kWidth; ++l) sliver[d * kWidth + l] = source[l * line_stride + d * depth_stride];
    }
    return;
  }
  for (int64_t d = 0; d < depth; ++d) {
    for (int l = 0; l < kWidth; ++l) {
      sliver[d * kWidth + l] = l < lines ? source[l * line_stride + d * depth_stride] : T{0};
    }
  }
}

#define SAGE_GEMM_KERNELS(tier, V)                                                                               \
  {                                                                                                              \
    lanes::tier::V::kTileRows, lanes::tier::V::kTileVectors *lanes::tier::V::kLanes, tier::Tile<lanes::tier::V>, \
        tier::Merge<lanes::tier::V, false>, tier::Merge<lanes::tier::V, true>,                                   \
        tier::MergeInto<lanes::tier::V::T, double>, tier::AddScaled<lanes::tier::V>,                             \
        Pack<lanes::tier::V::T, lanes::tier::V::kTileRows>,                                                      \
        Pack<lanes::tier::V::T, lanes::tier::V::kTileVectors * lanes::tier::V::kLanes>                           \
  }

const GemmTier kPlainGemm = {"plain", SAGE_GEMM_KERNELS(plain, F32), SAGE_GEMM_KERNELS(plain, F64)};
const GemmTier kAvx2Gemm = {"avx2", SAGE_GEMM_KERNELS(avx2, F32), SAGE_GEMM_KERNELS(avx2, F64)};
const GemmTier kAvx512Gemm = {"avx512", SAGE_GEMM_KERNELS(avx512, F32), SAGE_GEMM_KERNELS(avx512, F64)};

}  // namespace

absl::Span<const GemmTier* const> RunnableGemmTiers() {
  static const GemmTier* const kTiers[] = {&kPlainGemm, &kAvx2Gemm, &kAvx512Gemm};
  const CpuFeatures& cpu = HostCpu();
  const size_t count = cpu.avx512 ? 3 : cpu.avx2 ? 2 : 1;
  return absl::MakeConstSpan(kTiers, count);
}

const GemmTier& HostGemmTier() {
  static const GemmTier* const tier = RunnableGemmTiers().back();
  return *tier;
}

template <>
const GemmKernels<float>& KernelsOf<float>(const GemmTier& tier) {
  return tier.f32;
}
template <>
const GemmKernels<double>& KernelsOf<double>(const GemmTier& tier) {
  return tier.f64;
}

}  // namespace sage
