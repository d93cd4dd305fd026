// The kernel functions compiled for AVX-512 with VNNI.
#define SAGE_TIER avx512
// The vectors come before the kernels that are written in them.
// clang-format off
#include "engine/backends/cpu/kernels/simd_avx512.h"
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

const TierFns kAvx512Tier = {
    .name = "avx512",
    .dense_f32 = avx512::Dense<avx512::LoadF32>,
    .dense_f16 = avx512::Dense<avx512::LoadF16>,
    .dense_bf16 = avx512::Dense<avx512::LoadBF16>,
    .quantize_row = avx512::QuantizeRow,
    .quantize_row8 = avx512::QuantizeRow8<int8_t>,
    .quantize_row8_wide = avx512::QuantizeRow8<int16_t>,
    .int8_quads = true,
    .panels = avx512::Panels,
    .float_panels = avx512::FloatPanelRange,
    .attend = {avx512::Attend<avx512::PageF32>, avx512::Attend<avx512::PageBF16>, avx512::Attend<avx512::PageE4M3>,
               avx512::Attend<avx512::PageE5M2>, avx512::Attend<avx512::PageInt8>,
               avx512::Attend<avx512::PageInt8Channel>},
    .combine_parts = avx512::CombineParts,
    .rms_norm_row = avx512::RmsNormRow,
    .add = avx512::AddRow,
    .silu_mul_row = avx512::SiluMulRow,
    .probe = avx512::RunProbe,
    .rope_row = avx512::RopeRow,
};

}  // namespace sage::cpu
