// Linear layers in IEEE half precision (F16), rounded half to even when converted.
#include "engine/api/dense_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kF16Name[] = "f16";
using F16Linear = DenseLinear<kF16Name, DType::kF16>;
}  // namespace

extern const LinearStrategyDef kF16;
const LinearStrategyDef kF16 = {
    .name = kF16Name,
    .summary = "IEEE half precision, as stored",
    .weight_dtype = "f16",
    .weight_bits = 16,
    .activation_bits = 16,
    .quantizes = false,
    .tolerance = 1e-3,
    .check = F16Linear::Check,
    .quantize = F16Linear::Quantize,
    .dequantize_rows = F16Linear::DequantizeRows,
    .bind = F16Linear::Bind,
};

}  // namespace sage::linear_strategies
