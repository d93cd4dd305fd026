// fp8 weights (e4m3, or e5m2 as read) with activations rounded to e4m3 by token, by group or by a static scale.
#include "engine/api/fp8_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kFp8W8a8Name[] = "fp8_w8a8";
using Fp8W8a8Linear = Fp8Linear<kFp8W8a8Name, /*kRoundsActivations=*/true>;
}  // namespace

extern const LinearStrategyDef kFp8W8a8;
const LinearStrategyDef kFp8W8a8 = {
    .name = kFp8W8a8Name,
    .summary =
        "fp8 weights with a scale a tensor, row or block; activations rounded to e4m3 by token, by group or by a "
        "static scale",
    .weight_dtype = "fp8",
    .weight_bits = 8,
    .activation_bits = 8,
    .quantizes = true,
    .tolerance = 0.2,  // activations keep four bits; a single output of 32 inputs may cancel
    .check = Fp8W8a8Linear::Check,
    .quantize = Fp8W8a8Linear::Quantize,
    .dequantize_rows = Fp8W8a8Linear::DequantizeRows,
    .bind = Fp8W8a8Linear::Bind,
};

}  // namespace sage::linear_strategies
