// 3-bit integer weights with 16-bit activations, stored as GPTQ files hold them.
#include "engine/api/gptq_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kGptqW3a16Name[] = "gptq_w3a16";
using GptqW3a16Linear = GptqLinear<kGptqW3a16Name, 3>;
}  // namespace

extern const LinearStrategyDef kGptqW3a16;
const LinearStrategyDef kGptqW3a16 = {
    .name = kGptqW3a16Name,
    .summary = "3-bit integer weights in GPTQ's layout, groups that divide K or per channel, act-order served",
    .weight_dtype = "int3",
    .weight_bits = 3,
    .activation_bits = 16,
    .integer_grid = true,
    .stores_g_idx = true,
    .quantizes = true,
    .tolerance = 1e-2,
    .check = GptqW3a16Linear::Check,
    .quantize = GptqW3a16Linear::Quantize,
    .dequantize_rows = GptqW3a16Linear::DequantizeRows,
    .bind = GptqW3a16Linear::Bind,
};

}  // namespace sage::linear_strategies
