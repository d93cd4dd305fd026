// 3-bit integer weights with 16-bit activations, stored as GPTQ files hold them.
#include "engine/api/gptq_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kName[] = "gptq_w3a16";
using Gptq = GptqLinear<kName, 3>;
}  // namespace

extern const LinearStrategyDef kGptqW3a16;
const LinearStrategyDef kGptqW3a16 = {
    .name = kName,
    .summary = "3-bit integer weights in GPTQ's layout, groups of 16..256 inputs or per channel, act-order served",
    .weight_dtype = "int3",
    .weight_bits = 3,
    .activation_bits = 16,
    .integer_grid = true,
    .stores_g_idx = true,
    .quantizes = true,
    .tolerance = 1e-2,
    .check = Gptq::Check,
    .quantize = Gptq::Quantize,
    .dequantize_rows = Gptq::DequantizeRows,
    .bind = Gptq::Bind,
};

}  // namespace sage::linear_strategies
