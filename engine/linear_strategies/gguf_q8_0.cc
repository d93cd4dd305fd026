// ggml Q8_0: blocks of 32 eight-bit codes with one f16 scale, 8.5 bits a weight.
#include "engine/api/block_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kName[] = "gguf_q8_0";
using Blocks = BlockLinear<kName, GgmlType::kQ8_0>;
}  // namespace

extern const LinearStrategyDef kGgufQ80;
const LinearStrategyDef kGgufQ80 = {
    .name = kName,
    .summary = "ggml Q8_0 blocks, as in a GGUF file",
    .weight_dtype = "q8_0",
    .weight_bits = 8,
    .activation_bits = 16,
    .quantizes = true,
    .tolerance = 1e-2,
    .check = Blocks::Check,
    .quantize = Blocks::Quantize,
    .dequantize_rows = Blocks::DequantizeRows,
    .bind = Blocks::Bind,
};

}  // namespace sage::linear_strategies
