// Calibration methods: from what all calibration tokens say of a layer's input to the layer's plan. Plug-ins:
// engine/calibrators/<name>.cc.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/api/linear_strategy.h"

namespace sage {

struct BlockTrainingOptions;  // engine/solvers/block_training.h

// The input x of one or more linear layers over ALL tokens of all batches. Empty (K = 0) for methods that need none.
// Each token counts by the square of its weight c: for layers whose output is added to the hidden states the inverse of
// what the next norm will divide them by, as far as it is known, so that an error counts as the layers behind will see
// it; else 1.
struct InputStatistics {
  int64_t K = 0, tokens = 0;
  std::vector<float> gram;      // [K, K] sum of c^2 x x^T
  std::vector<float> mean_abs;  // [K] mean |x_j|
  std::vector<float> max_abs;   // [K] largest |x_j|
  std::vector<float> sample;    // [S, K] c x of tokens at even strides, S <= 512
  // Of the first and the second half of the tokens, where the unquantized model ran beside the quantized one; else
  // empty.
  struct Half {
    std::vector<float> gram;    // [K, K] sum c^2 x x^T
    std::vector<float> shift;   // [K, K] sum c^2 (x_full - x) x^T; empty where `wanted` is given
    std::vector<float> wanted;  // [N, K] sum c^2 y x^T with y what the layer should put out: for layers that are added
                                // to the hidden states, what the unquantized ones behind it have more
  };
  std::array<Half, 2> halves;
  std::vector<float> shift;  // [K, K] sum c^2 (x_full - x) x^T where GPTAQ's correction was asked for, else empty
};

// Scales of an input that several layers read, and how they came about.
struct InputScales {
  std::vector<float> values;  // [K] positive
  std::string how;            // for the record: "smoothquant alpha 0.75", "awq ratio 0.45", "none"
};

// Layers that read one value, and how they will be stored.
struct SharedInput {
  const InputStatistics& input;
  absl::Span<const TensorView> weights;  // [N, K] f32 each
  const LinearSpec& spec;
  const LinearStrategyDef& strategy;
};

// Pure functions: they never see models or files, and their results do not depend on the number of threads.
struct CalibratorDef {
  std::string_view name;  // "gptq"
  std::string_view summary;
  bool needs_activations = false;
  // Positive scales [K] that multiply the columns of the weights and divide the input (whoever made that input is
  // divided once and for all). Null: the method leaves the weights where they are.
  absl::StatusOr<InputScales> (*choose_scales)(const SharedInput& shared, ThreadPool& threads) = nullptr;
  // Scales, zeros and codes for weight [N, K] f32; an empty plan leaves them to the strategy's own rule.
  absl::StatusOr<LayerPlan> (*solve)(const InputStatistics& input, const TensorView& weight, const LinearSpec& spec,
                                     const LinearStrategyDef& strategy, ThreadPool& threads) = nullptr;
  // The unquantized model runs beside the quantized one and `solve` gets weights that make up for the difference of the
  // layer's inputs (engine/solvers/output_target.h).
  bool compensates = false;
  bool solves_by_gptq = false;  // honours LinearSpec::solve_in_f64
  // After `solve` the whole block is trained towards the unquantized one (needs `compensates` and `integer_grid`); null
  // = not.
  const BlockTrainingOptions* training = nullptr;
  // True when `solve` returns codes on the integer grid, so that only strategies that take such plans can serve it.
  bool integer_grid = false;
};

absl::Span<const CalibratorDef* const> Calibrators();
absl::StatusOr<const CalibratorDef*> FindCalibrator(std::string_view name);  // "rtn" is minmax

}  // namespace sage
