// ggml Q4_1: blocks of 32 four-bit codes with an f16 scale and an f16 minimum, 5 bits a weight.
#include "engine/api/block_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kGgufQ41Name[] = "gguf_q4_1";
using GgufQ41Linear = BlockLinear<kGgufQ41Name, GgmlType::kQ4_1>;
}  // namespace

extern const LinearStrategyDef kGgufQ41;
const LinearStrategyDef kGgufQ41 = {
    .name = kGgufQ41Name,
    .summary = "ggml Q4_1 blocks, as in a GGUF file",
    .weight_dtype = "q4_1",
    .weight_bits = 4,
    .activation_bits = 16,
    .quantizes = true,
    .tolerance = 1e-2,
    .check = GgufQ41Linear::Check,
    .quantize = GgufQ41Linear::Quantize,
    .dequantize_rows = GgufQ41Linear::DequantizeRows,
    .bind = GgufQ41Linear::Bind,
};

}  // namespace sage::linear_strategies
