// Rules that the strategies with f16 scales and unsigned zero points share (GPTQ and AWQ files): what a spec may ask
// and what a plan must hold. Codes and zeros of a plan are signed, -2^(b-1) .. 2^(b-1) - 1, as for every integer
// strategy.
#pragma once

#include <string_view>

#include "engine/api/linear_strategy.h"
#include "engine/quant/integer_grid.h"

namespace sage::linear_strategies {

// Group size, clip ratio and scale dtype. Scales are F16 in these files: F32, the field's default, stands for that.
absl::Status CheckZeroPointSpec(std::string_view name, const LinearSpec& spec, int64_t N, int64_t K);
// Sizes, finite positive scales, whole zeros and codes in range. `symmetric`: zeros must be absent or 0.
absl::Status CheckZeroPointPlan(std::string_view name, int bits, const LayerPlan& plan, bool symmetric, int64_t N,
                                int64_t K, int64_t G);
// Grid `at` = n * G + g of a plan with scales.
IntegerGrid PlannedGrid(const LayerPlan& plan, int64_t at, DType scale_dtype);
absl::Status ScaleOutOfF16(std::string_view name, int64_t n, int64_t g);

}  // namespace sage::linear_strategies
