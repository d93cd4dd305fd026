// FP4: 4-bit floats with one maximum for 64 weights, stored as bitsandbytes 4-bit tensors.
#include "engine/api/table_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kName[] = "fp4_w4a16";
struct Codes {
  static constexpr char kType[] = "fp4";
  static constexpr const std::array<float, 16>& kTable = kFp4Table;
  static uint8_t Encode(float value) { return EncodeFp4(value); }
};
using Table = TableLinear<kName, Codes>;
}  // namespace

extern const LinearStrategyDef kFp4W4a16;
const LinearStrategyDef kFp4W4a16 = {
    .name = kName,
    .summary = "FP4: 4-bit floats, one maximum for 64 weights; bitsandbytes",
    .weight_dtype = "fp4",
    .weight_bits = 4,
    .activation_bits = 16,
    .quantizes = true,
    .tolerance = 1e-5,
    .check = Table::Check,
    .quantize = Table::Quantize,
    .dequantize_rows = Table::DequantizeRows,
    .bind = Table::Bind,
};

}  // namespace sage::linear_strategies
