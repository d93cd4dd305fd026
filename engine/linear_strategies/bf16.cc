// Linear layers in bfloat16, rounded half to even when converted.
#include "engine/api/dense_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kBf16Name[] = "bf16";
using Bf16Linear = DenseLinear<kBf16Name, DType::kBF16>;
}  // namespace

extern const LinearStrategyDef kBf16;
const LinearStrategyDef kBf16 = {
    .name = kBf16Name,
    .summary = "bfloat16, as stored",
    .weight_dtype = "bf16",
    .weight_bits = 16,
    .activation_bits = 16,
    .quantizes = false,
    .tolerance = 1e-2,
    .check = Bf16Linear::Check,
    .quantize = Bf16Linear::Quantize,
    .dequantize_rows = Bf16Linear::DequantizeRows,
    .bind = Bf16Linear::Bind,
};

}  // namespace sage::linear_strategies
