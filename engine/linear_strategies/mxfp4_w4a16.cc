// MXFP4: E2M1 codes with an 8-bit exponent for 32 inputs, as compressed-tensors stores them.
#include "engine/api/e2m1_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kMxfp4W4a16Name[] = "mxfp4_w4a16";
using Mxfp4W4a16Linear = E2m1Linear<kMxfp4W4a16Name, 32, /*kGlobalScale=*/false>;
}  // namespace

extern const LinearStrategyDef kMxfp4W4a16;
const LinearStrategyDef kMxfp4W4a16 = {
    .name = kMxfp4W4a16Name,
    .summary = "E2M1 codes with an 8-bit exponent for 32 inputs",
    .weight_dtype = "mxfp4",
    .weight_bits = 4,
    .activation_bits = 16,
    .quantizes = true,
    .tolerance = 1e-5,
    .check = Mxfp4W4a16Linear::Check,
    .quantize = Mxfp4W4a16Linear::Quantize,
    .dequantize_rows = Mxfp4W4a16Linear::DequantizeRows,
    .bind = Mxfp4W4a16Linear::Bind,
};

}  // namespace sage::linear_strategies
