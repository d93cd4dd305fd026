// FP4: 4-bit floats with one maximum for 64 weights, stored as bitsandbytes 4-bit tensors.
#include "engine/api/table_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kFp4W4a16Name[] = "fp4_w4a16";
struct Fp4W4a16Codes {
  static constexpr char kType[] = "fp4";
  static constexpr const std::array<float, 16>& kTable = kFp4Table;
  static uint8_t Encode(float value) { return EncodeFp4(value); }
};
using Fp4W4a16Linear = TableLinear<kFp4W4a16Name, Fp4W4a16Codes>;
}  // namespace

extern const LinearStrategyDef kFp4W4a16;
const LinearStrategyDef kFp4W4a16 = {
    .name = kFp4W4a16Name,
    .summary = "FP4: 4-bit floats, one maximum for 64 weights; bitsandbytes",
    .weight_dtype = "fp4",
    .weight_bits = 4,
    .activation_bits = 16,
    .quantizes = true,
    .tolerance = 1e-5,
    .check = Fp4W4a16Linear::Check,
    .quantize = Fp4W4a16Linear::Quantize,
    .dequantize_rows = Fp4W4a16Linear::DequantizeRows,
    .bind = Fp4W4a16Linear::Bind,
};

}  // namespace sage::linear_strategies
