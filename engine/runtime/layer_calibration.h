// Calibrates one layer behind the layers that are already quantized: folds scales, then solves and quantizes its linear
// layers in the order in which they compute, each on what its quantized predecessors give it.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "engine/runtime/calibrate_plan.h"
#include "engine/runtime/layer_stream.h"
#include "engine/solvers/block_training.h"

namespace sage {

// The texts on their way through the model: behind quantized layers, and, for methods that compensate, through the
// unquantized ones beside them.
struct CalibrationStreams {
  std::unique_ptr<LayerStream> quantized;
  std::unique_ptr<LayerStream> full;  // null for the other methods
};

struct CalibratedLayer {
  LayerWeights weights;                                         // as the quantized model computes
  std::map<std::string, std::shared_ptr<StoredLinear>> stored;  // by module; modules left alone are absent
  std::map<std::string, double> error;                          // ||W - dequantized|| / ||W||, W as it was to be
  std::map<std::string, double> output_error;                   // ||x dW|| / ||x W|| over all tokens
  std::map<std::string, std::vector<float>> plain;              // norms and biases that folding changed, by name
  std::map<std::string, double> strength;                       // share of the correction taken, where there is one
  std::map<std::string, std::string> folded_by;                 // how those scales were chosen
  std::map<std::string, std::string> notes;                     // by module: what was folded into it
  std::vector<NamedTensor> kv_scales;                           // static scales of the KV cache
  // Block training: mean squared error relative to the size of the unquantized output, on held-out texts.
  std::optional<BlockTrainingResult> training;
  Json kv;  // what the manifest says of them; null without
};

// A layer as the source has it.
absl::StatusOr<LayerWeights> LoadLayerWeights(const ArtifactSource& source, int64_t layer, ThreadPool& threads);
// A finished layer read back from its shard file, as the quantized model computes.
absl::StatusOr<LayerWeights> ReadCalibratedLayer(const CalibrationPlan& plan, const std::string& shard_path,
                                                 int64_t layer, ThreadPool& threads);

// Leaves the streams behind the layer.
absl::StatusOr<CalibratedLayer> CalibrateLayer(const CalibrationPlan& plan, CalibrationStreams& streams, int64_t layer,
                                               ThreadPool& threads);

// sqrt(sum (w - d)^2 / sum w^2) of two [N, K] matrices, sums in row order.
double RelativeError(const Tensor& weight, const Tensor& dequantized, ThreadPool& threads);

}  // namespace sage
