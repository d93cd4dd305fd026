// 8-bit integer weights with 8-bit activations, stored as compressed-tensors int-quantized.
#include "engine/api/byte_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kName[] = "int8_w8a8";
using Bytes = ByteLinear<kName, 8>;
}  // namespace

extern const LinearStrategyDef kInt8W8a8;
const LinearStrategyDef kInt8W8a8 = {
    .name = kName,
    .summary =
        "8-bit integer weights, activations rounded to 8 bits by token or by a static scale; compressed-tensors "
        "int-quantized",
    .weight_dtype = "int8",
    .weight_bits = 8,
    .activation_bits = 8,
    .integer_grid = true,
    .quantizes = true,
    .tolerance = 0.2,  // activations keep eight bits; a single output of 32 inputs may cancel
    .check = Bytes::Check,
    .quantize = Bytes::Quantize,
    .dequantize_rows = Bytes::DequantizeRows,
    .bind = Bytes::Bind,
};

}  // namespace sage::linear_strategies
