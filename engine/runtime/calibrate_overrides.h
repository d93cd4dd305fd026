// Layers of one artifact that are stored otherwise than the rest: "PATTERN=key:value,..." with the keys bits,
// group_size, symmetric and exclude.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/runtime/calibrate_plan.h"

namespace sage {

struct LinearOverride {
  std::string text, pattern;
  std::optional<int> bits, group_size;
  std::optional<bool> symmetric, exclude;
};

// INVALID_ARGUMENT (BAD_OVERRIDE) names what could not be read; at most 1000.
absl::StatusOr<std::vector<LinearOverride>> ParseOverrides(const std::vector<std::string>& texts);
// Adds the modules whose last matching word on it is exclude:true to `ignored`, takes those of exclude:false away
// (lm_head stays).
void ExcludeOverridden(const std::vector<LinearOverride>& overrides, const std::vector<LinearSlot>& slots,
                       std::vector<std::string>* ignored);
// Modules that keep their floats: those outside the layers and those that a glob of `patterns` names.
// PATTERN_MATCHES_NOTHING for a pattern that names none.
absl::StatusOr<std::vector<std::string>> ResolveExclude(const std::vector<LinearSlot>& slots,
                                                        const std::vector<std::string>& patterns);
// What all overrides that match a module of `slots` say together. Each must change one of them: the errors are
// PATTERN_MATCHES_NOTHING, and OVERRIDE_HAS_NO_EFFECT for one that names modules of `all` only.
absl::StatusOr<std::map<std::string, LinearOverride>> MergeOverrides(const std::vector<LinearOverride>& overrides,
                                                                     const std::vector<LinearSlot>& slots,
                                                                     const std::vector<LinearSlot>& all);
// The modules of `slots` for which no override gives a group size.
std::vector<LinearSlot> WithoutOwnGroupSize(const std::vector<LinearOverride>& overrides,
                                            const std::vector<LinearSlot>& slots);
// The modules of `slots` that differ from the plan's own scheme. Every override must match a module
// (PATTERN_MATCHES_NOTHING); the format must hold every scheme.
absl::StatusOr<std::map<std::string, LinearChoice, std::less<>>> ResolveOverrides(
    const std::vector<LinearOverride>& overrides, const CalibrationPlan& plan, const std::vector<LinearSlot>& slots);
// The format's config for the plan with its overrides. INVALID_ARGUMENT (MIXED_SCHEMES_NOT_HELD) where it has one
// scheme only.
absl::StatusOr<Json> MixedQuantizationConfig(const CalibrationPlan& plan);
// Module to {strategy, group_size, symmetric}, for the record.
Json OverridesRecord(const CalibrationPlan& plan);

}  // namespace sage
