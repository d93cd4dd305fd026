// 4-bit integer weights with 8-bit activations, stored as compressed-tensors pack-quantized.
#include "engine/api/packed_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kInt4W4a8Name[] = "int4_w4a8";
using Int4W4a8Linear = PackedLinear<kInt4W4a8Name, 4, /*kRoundsActivations=*/true>;
}  // namespace

extern const LinearStrategyDef kInt4W4a8;
const LinearStrategyDef kInt4W4a8 = {
    .name = kInt4W4a8Name,
    .summary =
        "4-bit integer weights, activations rounded to 8 bits by token or by a static scale; compressed-tensors "
        "pack-quantized",
    .weight_dtype = "int4",
    .weight_bits = 4,
    .activation_bits = 8,
    .integer_grid = true,
    .quantizes = true,
    .tolerance = 0.2,  // activations keep eight bits; a single output of 32 inputs may cancel
    .check = Int4W4a8Linear::Check,
    .quantize = Int4W4a8Linear::Quantize,
    .dequantize_rows = Int4W4a8Linear::DequantizeRows,
    .bind = Int4W4a8Linear::Bind,
};

}  // namespace sage::linear_strategies
