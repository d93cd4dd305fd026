// Linear layers in 32-bit floats: the reference that everything is measured against.
#include "engine/api/dense_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kF32Name[] = "f32";
using F32Linear = DenseLinear<kF32Name, DType::kF32>;
}  // namespace

extern const LinearStrategyDef kF32;
const LinearStrategyDef kF32 = {
    .name = kF32Name,
    .summary = "32-bit floats, the reference",
    .weight_dtype = "f32",
    .weight_bits = 32,
    .activation_bits = 32,
    .quantizes = false,
    .tolerance = 1e-5,
    .check = F32Linear::Check,
    .quantize = F32Linear::Quantize,
    .dequantize_rows = F32Linear::DequantizeRows,
    .bind = F32Linear::Bind,
};

}  // namespace sage::linear_strategies
