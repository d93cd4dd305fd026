// Calibration texts on their way through a model, one layer at a time: the hidden states of every sample before the
// present layer, in f32, and the pieces of a layer's forward pass between its linear layers.
#pragma once

#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "engine/base/cancel.h"
#include "engine/decoder/decoder.h"
#include "engine/decoder/rope.h"
#include "engine/runtime/artifact_source.h"
#include "engine/runtime/kv_calibration.h"

namespace sage {

// One layer as it computes now: f32, rows in Hugging Face order.
struct LayerWeights {
  struct Linear {
    Tensor weight;            // [N, K]
    std::vector<float> bias;  // [N] or empty
  };
  std::vector<float> input_norm, post_norm;  // [hidden]
  std::vector<float> q_norm, k_norm;         // [D] or empty
  Linear q, k, v, o, gate, up, down;

  // "q_proj" ... "down_proj"; null for another word.
  Linear* Find(std::string_view kind);
};

class LayerStream {
 public:
  // Rows [M, K] without gaps.
  using VisitRows = absl::FunctionRef<absl::Status(const float* x, int64_t M)>;

  // Embeds the samples (at least one id each). RESOURCE_EXHAUSTED when the states do not fit in memory.
  static absl::StatusOr<std::unique_ptr<LayerStream>> Create(const ArtifactSource& source,
                                                             std::vector<std::vector<int32_t>> samples,
                                                             ThreadPool& threads, const CancelToken& cancel);
  int64_t tokens() const { return tokens_; }

  // The stages of layer l, to be called in this order; each Visit shows what the next linear layers read.
  absl::Status VisitAttentionInputs(const LayerWeights& w, VisitRows visit);  // of q, k, v
  // Shows the keys (after rope) and values of every sample to `kv` where it is given.
  absl::Status RunAttention(const LayerWeights& w, int64_t l, KvStatistics* kv = nullptr);
  absl::Status VisitAttended(VisitRows visit);  // of o
  absl::Status AddAttention(const LayerWeights& w);
  absl::Status VisitMlpInputs(const LayerWeights& w, VisitRows visit);  // of gate, up
  absl::Status VisitProducts(const LayerWeights& w, VisitRows visit);   // of down
  absl::Status AddMlp(const LayerWeights& w);

  // The whole layer.
  absl::Status Run(const LayerWeights& w, int64_t l);

 private:
  LayerStream(const DecoderConfig& config, ThreadPool& threads, const CancelToken& cancel);
  absl::Status Embed(const ArtifactSource& source);
  void Multiply(const float* x, int64_t M, const LayerWeights::Linear& linear, float* out);
  absl::Status AttendSample(const LayerWeights& w, int64_t l, size_t sample, int64_t begin, KvStatistics* kv);

  DecoderConfig config_;
  ThreadPool& threads_;
  const CancelToken& cancel_;
  Rope rope_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<KvArena> kv_;
  ActivationCache cache_;
  StepContext ctx_;
  std::vector<std::vector<int32_t>> samples_;
  std::vector<int32_t> pages_;
  int64_t tokens_ = 0;
  Tensor x_;         // [tokens, hidden]
  Tensor attended_;  // [tokens, H * D]
};

}  // namespace sage
