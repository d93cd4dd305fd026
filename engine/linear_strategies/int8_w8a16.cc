// 8-bit integer weights with 16-bit activations, stored as compressed-tensors pack-quantized.
#include "engine/api/packed_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kInt8W8a16Name[] = "int8_w8a16";
using Int8W8a16Linear = PackedLinear<kInt8W8a16Name, 8>;
}  // namespace

extern const LinearStrategyDef kInt8W8a16;
const LinearStrategyDef kInt8W8a16 = {
    .name = kInt8W8a16Name,
    .summary = "8-bit integer weights, groups that divide K or per channel; compressed-tensors pack-quantized",
    .weight_dtype = "int8",
    .weight_bits = 8,
    .activation_bits = 16,
    .integer_grid = true,
    .quantizes = true,
    .tolerance = 1e-2,
    .check = Int8W8a16Linear::Check,
    .quantize = Int8W8a16Linear::Quantize,
    .dequantize_rows = Int8W8a16Linear::DequantizeRows,
    .bind = Int8W8a16Linear::Bind,
};

}  // namespace sage::linear_strategies
