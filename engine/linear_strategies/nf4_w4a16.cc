// NF4: 4-bit codes of the normal distribution's quantiles with one maximum for 64 weights, stored as bitsandbytes 4-bit
// tensors.
#include "engine/api/table_linear.h"

namespace sage::linear_strategies {
namespace {
constexpr char kNf4W4a16Name[] = "nf4_w4a16";
struct Nf4W4a16Codes {
  static constexpr char kType[] = "nf4";
  static constexpr const std::array<float, 16>& kTable = kNf4Table;
  static uint8_t Encode(float value) { return EncodeNf4(value); }
};
using Nf4W4a16Linear = TableLinear<kNf4W4a16Name, Nf4W4a16Codes>;
}  // namespace

extern const LinearStrategyDef kNf4W4a16;
const LinearStrategyDef kNf4W4a16 = {
    .name = kNf4W4a16Name,
    .summary = "NF4: 4-bit codes of the normal distribution's quantiles, one maximum for 64 weights; bitsandbytes",
    .weight_dtype = "nf4",
    .weight_bits = 4,
    .activation_bits = 16,
    .quantizes = true,
    .tolerance = 1e-5,
    .check = Nf4W4a16Linear::Check,
    .quantize = Nf4W4a16Linear::Quantize,
    .dequantize_rows = Nf4W4a16Linear::DequantizeRows,
    .bind = Nf4W4a16Linear::Bind,
};

}  // namespace sage::linear_strategies
