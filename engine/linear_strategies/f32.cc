// Linear layers in 32-bit floats: the reference that everything is measured against.
#include "engine/api/dense_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kName[] = "f32";
using Dense = DenseLinear<kName, DType::kF32>;
}  // namespace

extern const LinearStrategyDef kF32;
const LinearStrategyDef kF32 = {
    .name = kName,
    .summary = "32-bit floats, the reference",
    .weight_dtype = "f32",
    .weight_bits = 32,
    .activation_bits = 32,
    .quantizes = false,
    .tolerance = 1e-5,
    .check = Dense::Check,
    .quantize = Dense::Quantize,
    .dequantize_rows = Dense::DequantizeRows,
    .bind = Dense::Bind,
};

}  // namespace sage::linear_strategies
