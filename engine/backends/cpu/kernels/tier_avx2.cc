// The kernel functions compiled for AVX2, FMA and F16C.
#define SAGE_TIER avx2
// The vectors come before the kernels that are written in them.
// clang-format off
#include "engine/backends/cpu/kernels/simd_avx2.h"
#include "engine/backends/cpu/kernels/row_tiles.h"
#include "engine/backends/cpu/kernels/linear_impl.h"
#include "engine/backends/cpu/kernels/quantize_impl.h"
#include "engine/backends/cpu/kernels/panels_impl.h"
#include "engine/backends/cpu/kernels/float_panels_impl.h"
#include "engine/backends/cpu/kernels/rows_impl.h"
#include "engine/backends/cpu/kernels/probe_impl.h"
#include "engine/backends/cpu/kernels/attention_tiles.h"
#include "engine/backends/cpu/kernels/attention_impl.h"
// clang-format on

namespace sage::cpu {

const TierFns kAvx2Tier = {
    .name = "avx2",
    .dense_f32 = avx2::Dense<avx2::LoadF32>,
    .dense_f16 = avx2::Dense<avx2::LoadF16>,
    .dense_bf16 = avx2::Dense<avx2::LoadBF16>,
    .quantize_row = avx2::QuantizeRow,
    .quantize_row8 = avx2::QuantizeRow8<int8_t>,
    .quantize_row8_wide = avx2::QuantizeRow8<int16_t>,
    .int8_quads = false,
    .panels = avx2::Panels,
    .float_panels = avx2::FloatPanelRange,
    .attend = {avx2::Attend<avx2::PageF32>, avx2::Attend<avx2::PageBF16>, avx2::Attend<avx2::PageE4M3>,
               avx2::Attend<avx2::PageE5M2>, avx2::Attend<avx2::PageInt8>, avx2::Attend<avx2::PageInt8Channel>},
    .combine_parts = avx2::CombineParts,
    .rms_norm_row = avx2::RmsNormRow,
    .add = avx2::AddRow,
    .silu_mul_row = avx2::SiluMulRow,
    .probe = avx2::RunProbe,
    .rope_row = avx2::RopeRow,
};

}  // namespace sage::cpu
