// The kernel functions compiled for plain C++.
#define SAGE_TIER generic
// The vectors come before the kernels that are written in them.
// clang-format off
#include "engine/backends/cpu/kernels/simd_generic.h"
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

const TierFns kGenericTier = {
    .name = "generic",
    .dense_f32 = generic::Dense<generic::LoadF32>,
    .dense_f16 = generic::Dense<generic::LoadF16>,
    .dense_bf16 = generic::Dense<generic::LoadBF16>,
    .quantize_row = generic::QuantizeRow,
    .quantize_row8 = generic::QuantizeRow8<int8_t>,
    .quantize_row8_wide = generic::QuantizeRow8<int16_t>,
    .int8_quads = true,
    .panels = generic::Panels,
    .float_panels = generic::FloatPanelRange,
    .attend = {generic::Attend<generic::PageF32>, generic::Attend<generic::PageBF16>,
               generic::Attend<generic::PageE4M3>, generic::Attend<generic::PageE5M2>,
               generic::Attend<generic::PageInt8>, generic::Attend<generic::PageInt8Channel>},
    .combine_parts = generic::CombineParts,
    .rms_norm_row = generic::RmsNormRow,
    .add = generic::AddRow,
    .silu_mul_row = generic::SiluMulRow,
    .probe = generic::RunProbe,
    .rope_row = generic::RopeRow,
};

}  // namespace sage::cpu
