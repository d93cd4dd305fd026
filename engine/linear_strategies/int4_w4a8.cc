// 4-bit integer weights with 8-bit activations, stored as compressed-tensors pack-quantized.
#include "engine/api/packed_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kName[] = "int4_w4a8";
using Packed = PackedLinear<kName, 4, /*kRoundsActivations=*/true>;
}  // namespace

extern const LinearStrategyDef kInt4W4a8;
const LinearStrategyDef kInt4W4a8 = {
    .name = kName,
    .summary =
        "4-bit integer weights, activations rounded to 8 bits by token or by a static scale; compressed-tensors "
        "pack-quantized",
    .weight_dtype = "int4",
    .weight_bits = 4,
    .activation_bits = 8,
    .integer_grid = true,
    .quantizes = true,
    .tolerance = 0.2,  // activations keep eight bits; a single output of 32 inputs may cancel
    .check = Packed::Check,
    .quantize = Packed::Quantize,
    .dequantize_rows = Packed::DequantizeRows,
    .bind = Packed::Bind,
};

}  // namespace sage::linear_strategies
