// ggml Q4_0: blocks of 32 four-bit codes with one f16 scale, 4.5 bits a weight.
#include "engine/api/block_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kGgufQ40Name[] = "gguf_q4_0";
using GgufQ40Linear = BlockLinear<kGgufQ40Name, GgmlType::kQ4_0>;
}  // namespace

extern const LinearStrategyDef kGgufQ40;
const LinearStrategyDef kGgufQ40 = {
    .name = kGgufQ40Name,
    .summary = "ggml Q4_0 blocks, as in a GGUF file",
    .weight_dtype = "q4_0",
    .weight_bits = 4,
    .activation_bits = 16,
    .quantizes = true,
    .tolerance = 1e-2,
    .check = GgufQ40Linear::Check,
    .quantize = GgufQ40Linear::Quantize,
    .dequantize_rows = GgufQ40Linear::DequantizeRows,
    .bind = GgufQ40Linear::Bind,
};

}  // namespace sage::linear_strategies
