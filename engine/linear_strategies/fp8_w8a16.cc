// fp8 weights (e4m3, or e5m2 as read) with f32 activations.
#include "engine/api/fp8_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kFp8W8a16Name[] = "fp8_w8a16";
using Fp8W8a16Linear = Fp8Linear<kFp8W8a16Name, /*kRoundsActivations=*/false>;
}  // namespace

extern const LinearStrategyDef kFp8W8a16;
const LinearStrategyDef kFp8W8a16 = {
    .name = kFp8W8a16Name,
    .summary = "fp8 weights with a scale a tensor, row or block; f32 activations",
    .weight_dtype = "fp8",
    .weight_bits = 8,
    .activation_bits = 16,
    .quantizes = true,
    .tolerance = 1e-5,
    .check = Fp8W8a16Linear::Check,
    .quantize = Fp8W8a16Linear::Quantize,
    .dequantize_rows = Fp8W8a16Linear::DequantizeRows,
    .bind = Fp8W8a16Linear::Bind,
};

}  // namespace sage::linear_strategies
