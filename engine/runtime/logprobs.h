// Log-probabilities of the model's own distribution: before penalties and filters, sums in f64.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace sage {

// log(sum(exp(logits))), so that log p(i) = logits[i] - it. INTERNAL (NON_FINITE_LOGITS) on NaN, +inf or all -inf.
absl::StatusOr<double> LogNormalizer(absl::Span<const float> logits);
// Number of ids with a larger logit.
int64_t RankOf(absl::Span<const float> logits, int32_t id);
// The `count` largest, largest first, the smaller id first of equals.
std::vector<std::pair<int32_t, float>> TopLogits(absl::Span<const float> logits, int count);

}  // namespace sage
