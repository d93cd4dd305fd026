// ggml Q8_0: blocks of 32 eight-bit codes with one f16 scale, 8.5 bits a weight.
#include "engine/api/block_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kGgufQ80Name[] = "gguf_q8_0";
using GgufQ80Linear = BlockLinear<kGgufQ80Name, GgmlType::kQ8_0>;
}  // namespace

extern const LinearStrategyDef kGgufQ80;
const LinearStrategyDef kGgufQ80 = {
    .name = kGgufQ80Name,
    .summary = "ggml Q8_0 blocks, as in a GGUF file",
    .weight_dtype = "q8_0",
    .weight_bits = 8,
    .activation_bits = 16,
    .quantizes = true,
    .tolerance = 1e-2,
    .check = GgufQ80Linear::Check,
    .quantize = GgufQ80Linear::Quantize,
    .dequantize_rows = GgufQ80Linear::DequantizeRows,
    .bind = GgufQ80Linear::Bind,
};

}  // namespace sage::linear_strategies
