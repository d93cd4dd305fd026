// What calibration keeps of a layer's input: sums over all tokens, and beside the unquantized model the sums that say
// what the quantized layers before it have changed.
#pragma once

#include <memory>
#include <vector>

#include "engine/api/calibrator.h"
#include "engine/runtime/layer_stream.h"
#include "engine/solvers/dense_algebra.h"
#include "engine/solvers/scale_search.h"

namespace sage {

// The unquantized model beside the quantized one.
struct FullStream {
  LayerStream* stream = nullptr;          // null = the method does not look at it
  const LayerWeights* weights = nullptr;  // of the present layer, as the source has it
};

struct StatisticsRequest {
  LayerInput input = LayerInput::kAttention;
  // The scales that were folded out of this input (x_full is divided by them); empty = none.
  const std::vector<float>* folded = nullptr;
  // Fill `halves`; needs a FullStream. For kAttended and kProduct it must stand behind the addition already.
  bool halves = false;
  int64_t most_tokens = 0;  // those behind are left out; 0 = none is
  bool adds = false;        // kAttended and kProduct: the pass adds them to the hidden states
};

// One pass over the input of `w` in `stream`. Values that are not finite are refused.
absl::StatusOr<InputStatistics> CollectStatistics(LayerStream& stream, const LayerWeights& w, const FullStream& full,
                                                  const StatisticsRequest& request, ThreadPool& threads);

}  // namespace sage
