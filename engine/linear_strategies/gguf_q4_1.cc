// ggml Q4_1: blocks of 32 four-bit codes with an f16 scale and an f16 minimum, 5 bits a weight.
#include "engine/api/block_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kName[] = "gguf_q4_1";
using Blocks = BlockLinear<kName, GgmlType::kQ4_1>;
}  // namespace

extern const LinearStrategyDef kGgufQ41;
const LinearStrategyDef kGgufQ41 = {
    .name = kName,
    .summary = "ggml Q4_1 blocks, as in a GGUF file",
    .weight_dtype = "q4_1",
    .weight_bits = 4,
    .activation_bits = 16,
    .quantizes = true,
    .tolerance = 1e-2,
    .check = Blocks::Check,
    .quantize = Blocks::Quantize,
    .dequantize_rows = Blocks::DequantizeRows,
    .bind = Blocks::Bind,
};

}  // namespace sage::linear_strategies
