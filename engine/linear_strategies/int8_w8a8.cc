// 8-bit integer weights with 8-bit activations, stored as compressed-tensors int-quantized.
#include "engine/api/byte_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kInt8W8a8Name[] = "int8_w8a8";
using Int8W8a8Linear = ByteLinear<kInt8W8a8Name, 8>;
}  // namespace

extern const LinearStrategyDef kInt8W8a8;
const LinearStrategyDef kInt8W8a8 = {
    .name = kInt8W8a8Name,
    .summary =
        "8-bit integer weights, activations rounded to 8 bits by token or by a static scale; compressed-tensors "
        "int-quantized",
    .weight_dtype = "int8",
    .weight_bits = 8,
    .activation_bits = 8,
    .integer_grid = true,
    .quantizes = true,
    .tolerance = 0.2,  // activations keep eight bits; a single output of 32 inputs may cancel
    .check = Int8W8a8Linear::Check,
    .quantize = Int8W8a8Linear::Quantize,
    .dequantize_rows = Int8W8a8Linear::DequantizeRows,
    .bind = Int8W8a8Linear::Bind,
};

}  // namespace sage::linear_strategies
