// Checks of specs and plans for GPTQ and AWQ layers.
#include "engine/api/zero_point_plan.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/api/stored_tensors.h"

namespace sage::linear_strategies {

absl::Status CheckZeroPointSpec(std::string_view name, const LinearSpec& spec, int64_t N, int64_t K) {
  SAGE_RETURN_IF_ERROR(CheckSize(name, N, K));
  SAGE_RETURN_IF_ERROR(CheckGroupSize(name, spec.group_size, K));
  if (!(spec.clip_ratio >= 0 && spec.clip_ratio < 1)) {
    return Refuse(name, "BAD_CLIP_RATIO", absl::StrCat("clip_ratio must be in [0, 1), got ", spec.clip_ratio));
  }
  if (spec.scale_dtype != DType::kF16 && spec.scale_dtype != DType::kF32) {
    return Refuse(name, "BAD_SCALE_DTYPE",
                  absl::StrCat("scale_dtype must be F16, the precision of the file format, got ",
                               std::string(DTypeName(spec.scale_dtype))));
  }
  return absl::OkStatus();
}

absl::Status CheckZeroPointPlan(std::string_view name, int bits, const LayerPlan& plan, bool symmetric, int64_t N,
                                int64_t K, int64_t G) {
  const size_t scales = static_cast<size_t>(N * G), codes = static_cast<size_t>(N * K);
  const auto fits = [](size_t size, size_t wanted) { return size == 0 || size == wanted; };
  if (!fits(plan.scale.size(), scales) || !fits(plan.zero.size(), scales) || !fits(plan.codes.size(), codes)) {
    return Refuse(name, "BAD_PLAN",
                  absl::StrCat("the plan must hold ", scales, " scales and zeros and ", codes, " codes, got ",
                               plan.scale.size(), ", ", plan.zero.size(), " and ", plan.codes.size()));
  }
  const bool lacks_scale = plan.scale.empty() && (!plan.zero.empty() || !plan.codes.empty());
  if (lacks_scale || (!symmetric && !plan.scale.empty() && plan.zero.empty())) {
    return Refuse(name, "BAD_PLAN", "a plan with codes or zeros must have scales, and zeros too when asymmetric");
  }
  for (const float scale : plan.scale) {
    if (!(std::isfinite(scale) && scale > 0)) {
      return Refuse(name, "BAD_PLAN", absl::StrCat("scales must be positive and finite, got ", scale));
    }
  }
  for (const float zero : plan.zero) {
    const bool whole = zero >= MinCode(bits) && zero <= MaxCode(bits) && zero == std::floor(zero);
    if (!whole || (symmetric && zero != 0)) {
      return Refuse(name, "BAD_PLAN",
                    absl::StrCat("zeros must be signed whole codes ", MinCode(bits), " .. ", MaxCode(bits),
                                 ", and 0 when symmetric, got ", zero));
    }
  }
  for (const int8_t code : plan.codes) {
    if (code < MinCode(bits) || code > MaxCode(bits)) {
      return Refuse(
          name, "BAD_PLAN",
          absl::StrCat("codes must be ", MinCode(bits), " .. ", MaxCode(bits), ", got ", static_cast<int>(code)));
    }
  }
  return absl::OkStatus();
}

IntegerGrid PlannedGrid(const LayerPlan& plan, int64_t at, DType scale_dtype) {
  IntegerGrid grid;
  grid.scale = RoundToDType(plan.scale[static_cast<size_t>(at)], scale_dtype);
  if (grid.scale == 0.0f) grid.scale = MachineEpsilon(scale_dtype);
  if (!plan.zero.empty()) grid.zero = static_cast<int32_t>(plan.zero[static_cast<size_t>(at)]);
  return grid;
}

absl::Status ScaleOutOfF16(std::string_view name, int64_t n, int64_t g) {
  return Refuse(name, "SCALE_OUT_OF_RANGE",
                absl::StrCat("scales must fit F16, the precision of the file format, row ", n, ", group ", g,
                             " does not; int4_w4a16 and int8_w8a16 hold BF16 and F32 scales"));
}

}  // namespace sage::linear_strategies
