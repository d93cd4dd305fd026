// Trains the block that a layer's solved linears make: between the calibration streams and solvers/block_training.
#pragma once

#include <map>
#include <string>

#include "engine/runtime/layer_calibration.h"

namespace sage {

// A linear layer as its solver left it.
struct SolvedLinear {
  Tensor weight;   // [N, K] what was rounded
  LayerPlan plan;  // codes, scales, zeros
};

struct TrainedLayer {
  BlockTrainingResult result;
  std::map<std::string, LayerPlan, std::less<>> plans;  // by kind, of those that were solved
  LayerWeights norms;                                   // only the norms are set
};

BlockShape BlockShapeOf(const DecoderConfig& config, int64_t layer);

// `w`: the layer as it computes now; `solved` by kind ("q_proj"). The quantized stream must have kept its states before
// the layer, the unquantized one must stand behind it. Neither moves.
absl::StatusOr<TrainedLayer> TrainSolvedLayer(const CalibrationPlan& plan, const CalibrationStreams& streams,
                                              int64_t layer, const LayerWeights& w,
                                              const std::map<std::string, SolvedLinear, std::less<>>& solved,
                                              ThreadPool& threads);

}  // namespace sage
