// Calibration methods: observe activations, then solve for each layer's plan. Plug-ins: engine/calibrators/<name>.cc.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/api/linear_strategy.h"

namespace sage {

// What a method collects for one linear layer over ALL batches. Pure apart from its own state; never sees models or
// files.
class CalibratorState {
 public:
  virtual ~CalibratorState() = default;
  virtual absl::Status Observe(const StepValue& input) = 0;  // [M, K] f32
  // Decides scales (and codes) for weight [N, K].
  virtual absl::StatusOr<LayerPlan> Solve(const TensorView& weight, const LinearSpec& spec, ThreadPool& threads) = 0;
};

struct CalibratorDef {
  std::string_view name;  // "minmax"
  std::string_view summary;
  bool needs_activations = false;
  absl::StatusOr<std::unique_ptr<CalibratorState>> (*start)(const LinearSpec& spec, int64_t N, int64_t K) = nullptr;
};

absl::Span<const CalibratorDef* const> Calibrators();
absl::StatusOr<const CalibratorDef*> FindCalibrator(std::string_view name);  // "rtn" is minmax

}  // namespace sage
