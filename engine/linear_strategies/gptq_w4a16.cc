// 4-bit integer weights with 16-bit activations, stored as GPTQ files hold them.
#include "engine/api/gptq_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kGptqW4a16Name[] = "gptq_w4a16";
using GptqW4a16Linear = GptqLinear<kGptqW4a16Name, 4>;
}  // namespace

extern const LinearStrategyDef kGptqW4a16;
const LinearStrategyDef kGptqW4a16 = {
    .name = kGptqW4a16Name,
    .summary = "4-bit integer weights in GPTQ's layout, groups that divide K or per channel, act-order served",
    .weight_dtype = "gptq_int4",
    .weight_bits = 4,
    .activation_bits = 16,
    .integer_grid = true,
    .stores_g_idx = true,
    .quantizes = true,
    .tolerance = 1e-2,
    .check = GptqW4a16Linear::Check,
    .quantize = GptqW4a16Linear::Quantize,
    .dequantize_rows = GptqW4a16Linear::DequantizeRows,
    .bind = GptqW4a16Linear::Bind,
};

}  // namespace sage::linear_strategies
