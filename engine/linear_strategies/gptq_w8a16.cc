// 8-bit integer weights with 16-bit activations, stored as GPTQ files hold them.
#include "engine/api/gptq_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kGptqW8a16Name[] = "gptq_w8a16";
using GptqW8a16Linear = GptqLinear<kGptqW8a16Name, 8>;
}  // namespace

extern const LinearStrategyDef kGptqW8a16;
const LinearStrategyDef kGptqW8a16 = {
    .name = kGptqW8a16Name,
    .summary = "8-bit integer weights in GPTQ's layout, groups that divide K or per channel, act-order served",
    .weight_dtype = "gptq_int8",
    .weight_bits = 8,
    .activation_bits = 16,
    .integer_grid = true,
    .stores_g_idx = true,
    .quantizes = true,
    .tolerance = 1e-2,
    .check = GptqW8a16Linear::Check,
    .quantize = GptqW8a16Linear::Quantize,
    .dequantize_rows = GptqW8a16Linear::DequantizeRows,
    .bind = GptqW8a16Linear::Bind,
};

}  // namespace sage::linear_strategies
