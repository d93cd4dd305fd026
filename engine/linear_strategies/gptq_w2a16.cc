// 2-bit integer weights with 16-bit activations, stored as GPTQ files hold them.
#include "engine/api/gptq_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kGptqW2a16Name[] = "gptq_w2a16";
using GptqW2a16Linear = GptqLinear<kGptqW2a16Name, 2>;
}  // namespace

extern const LinearStrategyDef kGptqW2a16;
const LinearStrategyDef kGptqW2a16 = {
    .name = kGptqW2a16Name,
    .summary = "2-bit integer weights in GPTQ's layout, groups that divide K or per channel, act-order served",
    .weight_dtype = "int2",
    .weight_bits = 2,
    .activation_bits = 16,
    .integer_grid = true,
    .stores_g_idx = true,
    .quantizes = true,
    .tolerance = 1e-2,
    .check = GptqW2a16Linear::Check,
    .quantize = GptqW2a16Linear::Quantize,
    .dequantize_rows = GptqW2a16Linear::DequantizeRows,
    .bind = GptqW2a16Linear::Bind,
};

}  // namespace sage::linear_strategies
