// 4-bit integer weights with zero points and 16-bit activations, stored as AutoAWQ's GEMM layout.
#include "engine/api/awq_linear.h"

namespace sage::linear_strategies {
namespace {

constexpr char kName[] = "awq_w4a16";

absl::Status Check(const LinearSpec& spec, int64_t N, int64_t K) { return CheckAwq(kName, spec, N, K); }

absl::StatusOr<StoredLinear> Quantize(const TensorView& weight, const LinearSpec& spec, const LayerPlan& plan,
                                      ThreadPool& threads) {
  return QuantizeAwq(kName, weight, spec, plan, threads);
}

// Codes are copied: the map behind `stored` may go.
absl::StatusOr<std::unique_ptr<BoundLinear>> Bind(const StoredLinear& stored, std::shared_ptr<const void>,
                                                  const Backend& backend, Priority priority, ThreadPool& threads) {
  return BindAwq(stored, backend, priority, threads);
}

}  // namespace

extern const LinearStrategyDef kAwqW4a16;
const LinearStrategyDef kAwqW4a16 = {
    .name = kName,
    .summary = "4-bit integer weights with zero points in AutoAWQ's GEMM layout, groups that divide K or per channel",
    .weight_dtype = "awq_int4",
    .weight_bits = 4,
    .activation_bits = 16,
    .integer_grid = true,
    .quantizes = true,
    .tolerance = 1e-2,
    .check = Check,
    .quantize = Quantize,
    .dequantize_rows = DequantizeAwqRows,
    .bind = Bind,
};

}  // namespace sage::linear_strategies
