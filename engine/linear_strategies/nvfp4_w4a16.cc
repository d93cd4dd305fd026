// NVFP4: E2M1 codes with an e4m3 scale for 16 inputs and one f32 scale, as compressed-tensors stores them.
#include "engine/api/e2m1_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kNvfp4W4a16Name[] = "nvfp4_w4a16";
using Nvfp4W4a16Linear = E2m1Linear<kNvfp4W4a16Name, 16, /*kGlobalScale=*/true>;
}  // namespace

extern const LinearStrategyDef kNvfp4W4a16;
const LinearStrategyDef kNvfp4W4a16 = {
    .name = kNvfp4W4a16Name,
    .summary = "E2M1 codes with an e4m3 scale for 16 inputs and one f32 scale",
    .weight_dtype = "nvfp4",
    .weight_bits = 4,
    .activation_bits = 16,
    .quantizes = true,
    .tolerance = 1e-5,
    .check = Nvfp4W4a16Linear::Check,
    .quantize = Nvfp4W4a16Linear::Quantize,
    .dequantize_rows = Nvfp4W4a16Linear::DequantizeRows,
    .bind = Nvfp4W4a16Linear::Bind,
};

}  // namespace sage::linear_strategies
