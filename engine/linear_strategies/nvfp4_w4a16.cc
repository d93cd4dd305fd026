// NVFP4: E2M1 codes with an e4m3 scale for 16 inputs and one f32 scale, as compressed-tensors stores them.
#include "engine/api/e2m1_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kName[] = "nvfp4_w4a16";
using E2m1 = E2m1Linear<kName, 16, /*kGlobalScale=*/true>;
}  // namespace

extern const LinearStrategyDef kNvfp4W4a16;
const LinearStrategyDef kNvfp4W4a16 = {
    .name = kName,
    .summary = "E2M1 codes with an e4m3 scale for 16 inputs and one f32 scale",
    .weight_dtype = "nvfp4",
    .weight_bits = 4,
    .activation_bits = 16,
    .quantizes = true,
    .tolerance = 1e-5,
    .check = E2m1::Check,
    .quantize = E2m1::Quantize,
    .dequantize_rows = E2m1::DequantizeRows,
    .bind = E2m1::Bind,
};

}  // namespace sage::linear_strategies
