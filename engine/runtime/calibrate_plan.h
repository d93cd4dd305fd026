// What a calibration will do, settled before the first byte is written: every word of the spec resolved, checked and
// hashed.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/calibrator.h"
#include "engine/api/checkpoint_format.h"
#include "engine/api/engine.h"
#include "engine/api/linear_strategy.h"
#include "engine/runtime/artifact_source.h"
#include "engine/runtime/kv_calibration.h"

namespace sage {

// How one linear layer is stored.
struct LinearChoice {
  const LinearStrategyDef* strategy = nullptr;
  LinearSpec linear;       // group size resolved
  bool act_order = false;  // asked of the solver; linear.act_order says whether g_idx is stored

  // What the solver is asked for.
  LinearSpec Asked() const {
    LinearSpec out = linear;
    out.act_order = act_order;
    return out;
  }
};

struct CalibrationPlan {
  std::unique_ptr<ArtifactSource> source;
  const LinearStrategyDef* strategy = nullptr;
  const CalibratorDef* calibrator = nullptr;
  LinearSpec linear;                // group size resolved
  bool act_order = false;           // asked of the solver; linear.act_order says whether g_idx is stored
  bool gptq_correction = false;     // GPTAQ's in place of least-squares weights
  RangeSpec range;                  // how static ranges are cut
  bool static_activations = false;  // one scale (and zero point) of each layer's 8-bit input
  bool activation_asymmetric = false;
  KvCalibration kv;
  const CheckpointFormatDef* format = nullptr;
  Json quantization_config;                                    // of config.json
  std::map<std::string, LinearChoice, std::less<>> overrides;  // modules that are stored otherwise than the rest
  std::vector<std::string> ignored;  // modules that stay as they are: lm_head and what `exclude` names
  Json dataset;                      // {name, sha256, kind, entries} or null
  std::string source_sha256;
  Json spec;              // canonical; what the artifact's bytes depend on
  std::string spec_hash;  // sha256 of `spec`

  bool Quantizes(const LinearSlot& slot) const;
  LinearChoice ChoiceOf(std::string_view module) const;
  // Whether the texts must run through the layers.
  bool needs_stream() const { return calibrator->needs_activations || static_activations || kv.calibrates; }
};

absl::StatusOr<CalibrationPlan> PlanCalibration(const CalibrationSpec& spec);

// The group size that a calibration of `slots` uses: `asked` > 0 must divide every K, 0 takes the largest of 128, 64,
// 32 that does, `automatic` the largest of 256..16 that the strategy accepts; -1 stays. GROUP_SIZE_MUST_DIVIDE_K names
// sizes that do.
absl::StatusOr<int> ResolveGroupSize(const LinearStrategyDef& strategy, LinearSpec spec,
                                     const std::vector<LinearSlot>& slots, int asked, bool automatic);

}  // namespace sage
