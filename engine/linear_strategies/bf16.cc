// Linear layers in bfloat16, rounded half to even when converted.
#include "engine/api/dense_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kName[] = "bf16";
using Dense = DenseLinear<kName, DType::kBF16>;
}  // namespace

extern const LinearStrategyDef kBf16;
const LinearStrategyDef kBf16 = {
    .name = kName,
    .summary = "bfloat16, as stored",
    .weight_dtype = "bf16",
    .weight_bits = 16,
    .activation_bits = 16,
    .quantizes = false,
    .tolerance = 1e-2,
    .check = Dense::Check,
    .quantize = Dense::Quantize,
    .dequantize_rows = Dense::DequantizeRows,
    .bind = Dense::Bind,
};

}  // namespace sage::linear_strategies
