// 4-bit integer weights with 16-bit activations, stored as compressed-tensors pack-quantized.
#include "engine/api/packed_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kInt4W4a16Name[] = "int4_w4a16";
using Int4W4a16Linear = PackedLinear<kInt4W4a16Name, 4>;
}  // namespace

extern const LinearStrategyDef kInt4W4a16;
const LinearStrategyDef kInt4W4a16 = {
    .name = kInt4W4a16Name,
    .summary = "4-bit integer weights, groups that divide K or per channel; compressed-tensors pack-quantized",
    .weight_dtype = "int4",
    .weight_bits = 4,
    .activation_bits = 16,
    .integer_grid = true,
    .quantizes = true,
    .tolerance = 1e-2,
    .check = Int4W4a16Linear::Check,
    .quantize = Int4W4a16Linear::Quantize,
    .dequantize_rows = Int4W4a16Linear::DequantizeRows,
    .bind = Int4W4a16Linear::Bind,
};

}  // namespace sage::linear_strategies
