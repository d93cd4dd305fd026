// 4-bit weights stored as AutoAWQ's GEMM layout (reference/quantization.md 1.3).
//
//   qweight  I32 [K, N / 8]  unsigned codes, eight outputs a word in the order 0 2 4 6 1 3 5 7
//   qzeros   I32 [G, N / 8]  zero points in the same order, stored as they are
//   scales   F16 [G, N]      files of other tools may hold F32 or BF16
// w = scale * (code - zero), one f32 product. A GEMV_FAST file has no whole zeros but -(scale * zero) rounded to f16;
// such a layer has, instead of qzeros,
//   scaled_zeros  F16 [G, N]
// and means w = scale * code + scaled_zero: product rounded to f32, then the sum. It is read, never written.
//
// The layout always has zero points, so `symmetric` (true is the field's default and cannot mean "asked for") is not
// looked at when quantizing; the stored layer says symmetric=false. Plans speak of signed codes and zeros (minus 8).
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/api/linear_strategy.h"

namespace sage {

// What config.json's quantization_config must say of layers stored as above (AutoAWQ's keys). `ignored` names modules
// that stay dense.
Json AwqQuantizationConfig(const LinearSpec& spec, const std::vector<std::string>& ignored);

namespace linear_strategies {

// N must be a multiple of 8; groups of any size that divides K, or one a row.
absl::Status CheckAwq(std::string_view name, const LinearSpec& spec, int64_t N, int64_t K);
absl::StatusOr<StoredLinear> QuantizeAwq(std::string_view name, const TensorView& weight, const LinearSpec& spec,
                                         const LayerPlan& plan, ThreadPool& threads);
absl::Status DequantizeAwqRows(const StoredLinear& stored, int64_t n_begin, int64_t n_end, float* out);
// Served by the panel kernels of int4_w4a16.
absl::StatusOr<std::unique_ptr<BoundLinear>> BindAwq(const StoredLinear& stored, const Backend& backend,
                                                     Priority priority, ThreadPool& threads);

}  // namespace linear_strategies
}  // namespace sage
