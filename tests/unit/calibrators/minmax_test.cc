// minmax: an empty plan, and observation that checks what it is shown.
#include <cmath>
#include <vector>

#include "engine/api/calibrator.h"
#include "engine/base/status.h"
#include "gtest/gtest.h"

namespace sage {
namespace calibrators {
extern const CalibratorDef kMinmax;
}  // namespace calibrators
namespace {

TEST(MinMax, PlanIsEmptyAndInputsAreChecked) {
  ThreadPool threads(1);
  EXPECT_FALSE(calibrators::kMinmax.needs_activations);
  auto state = calibrators::kMinmax.start({}, 2, 4);
  ASSERT_TRUE(state.ok());
  std::vector<float> x = {1, 2, 3, 4, 5, 6, 7, 8};
  EXPECT_TRUE((*state)->Observe({1, x.data(), 2, 4, 4}).ok());
  EXPECT_EQ(GetErrorReason((*state)->Observe({2, x.data(), 1, 8, 8})).reason, "BAD_CALIBRATION_INPUT");
  x[6] = std::nanf("");
  EXPECT_EQ(GetErrorReason((*state)->Observe({3, x.data(), 2, 4, 4})).reason, "NON_FINITE_ACTIVATION");
  const std::vector<float> weight(8, 1.0f);
  const auto plan = (*state)->Solve({DType::kF32, {2, 4}, weight.data(), 32}, {}, threads);
  ASSERT_TRUE(plan.ok());
  EXPECT_TRUE(plan->scale.empty() && plan->zero.empty() && plan->codes.empty() && plan->g_idx.empty());
  EXPECT_FALSE((*state)->Solve({DType::kF32, {4, 2}, weight.data(), 32}, {}, threads).ok());
  EXPECT_FALSE(calibrators::kMinmax.start({}, 0, 4).ok());
}

}  // namespace
}  // namespace sage
