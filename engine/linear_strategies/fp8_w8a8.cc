// fp8 weights (e4m3, or e5m2 as read) with activations rounded to e4m3 by token, by group or by a static scale.
#include "engine/api/fp8_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kName[] = "fp8_w8a8";
using Fp8 = Fp8Linear<kName, /*kRoundsActivations=*/true>;
}  // namespace

extern const LinearStrategyDef kFp8W8a8;
const LinearStrategyDef kFp8W8a8 = {
    .name = kName,
    .summary =
        "fp8 weights with a scale a tensor, row or block; activations rounded to e4m3 by token, by group or by a "
        "static scale",
    .weight_dtype = "fp8",
    .weight_bits = 8,
    .activation_bits = 8,
    .quantizes = true,
    .tolerance = 0.2,  // activations keep four bits; a single output of 32 inputs may cancel
    .check = Fp8::Check,
    .quantize = Fp8::Quantize,
    .dequantize_rows = Fp8::DequantizeRows,
    .bind = Fp8::Bind,
};

}  // namespace sage::linear_strategies
