// Linear layers in IEEE half precision (F16), rounded half to even when converted.
#include "engine/api/dense_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kName[] = "f16";
using Dense = DenseLinear<kName, DType::kF16>;
}  // namespace

extern const LinearStrategyDef kF16;
const LinearStrategyDef kF16 = {
    .name = kName,
    .summary = "IEEE half precision, as stored",
    .weight_dtype = "f16",
    .weight_bits = 16,
    .activation_bits = 16,
    .quantizes = false,
    .tolerance = 1e-3,
    .check = Dense::Check,
    .quantize = Dense::Quantize,
    .dequantize_rows = Dense::DequantizeRows,
    .bind = Dense::Bind,
};

}  // namespace sage::linear_strategies
