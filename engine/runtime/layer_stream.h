// Calibration texts on their way through a model, one layer at a time: the hidden states of every sample before the
// present layer, in f32, and the pieces of a layer's forward pass between its linear layers.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "engine/base/cancel.h"
#include "engine/decoder/decoder.h"
#include "engine/decoder/rope.h"
#include "engine/runtime/artifact_source.h"
#include "engine/runtime/kv_calibration.h"
#include "engine/runtime/state_buffer.h"

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
  const Linear* Find(std::string_view kind) const { return const_cast<LayerWeights*>(this)->Find(kind); }
};

// What the linear layers of a decoder layer read: q, k, v; o; gate, up; down.
enum class LayerInput { kAttention, kAttended, kMlp, kProduct };

class LayerStream {
 public:
  // Rows [M, K] without gaps.
  using VisitRows = absl::FunctionRef<absl::Status(const float* x, int64_t M)>;
  static constexpr int64_t kChunkRows = 512;

  // Embeds the samples (at least one id each). spill_folder: where the states lie; "" = in memory. RESOURCE_EXHAUSTED
  // when they do not fit.
  static absl::StatusOr<std::unique_ptr<LayerStream>> Create(const ArtifactSource& source,
                                                             std::vector<std::vector<int32_t>> samples,
                                                             ThreadPool& threads, const CancelToken& cancel,
                                                             const std::string& spill_folder = "");
  int64_t tokens() const { return tokens_; }
  const CancelToken& cancel() const { return cancel_; }
  // Tokens of each text.
  std::vector<int64_t> Lengths() const;
  // cos and sin [length, D / 2] of a text's positions.
  void FillRope(int64_t length, float* cos, float* sin) const;

  // Remembers the hidden states as they stand, and goes back to them.
  absl::Status Keep();
  const float* Kept() const { return kept_.data(); }
  void Rewind();

  // Columns of an input.
  int64_t Width(LayerInput input) const;
  // The stages of layer l are RunAttention, AddAttention and AddMlp in this order. The attention's inputs stand before
  // the first; what was attended between the first two; the MLP's inputs and products before the last.
  // Shows the keys (after rope) and values of every sample to `kv` where it is given.
  absl::Status RunAttention(const LayerWeights& w, int64_t l, KvStatistics* kv = nullptr);
  absl::Status AddAttention(const LayerWeights& w) { return Add(LayerInput::kAttended, w, nullptr); }
  absl::Status AddMlp(const LayerWeights& w) { return Add(LayerInput::kProduct, w, nullptr); }
  // AddAttention (kAttended) or AddMlp (kProduct). Shows the rows of the input to `visit` where it is given, when their
  // share is in the hidden states.
  absl::Status Add(LayerInput input, const LayerWeights& w, const VisitRows* visit);
  // Rows [begin, begin + M) of an input, M <= kChunkRows.
  void Rows(LayerInput input, const LayerWeights& w, int64_t begin, int64_t M, float* out);
  // All of it in chunks of kChunkRows.
  absl::Status Visit(LayerInput input, const LayerWeights& w, VisitRows visit);
  // Hidden states [M, hidden] from row `begin` on, as they stand.
  const float* Hidden(int64_t begin) const { return x_.data() + begin * config_.hidden; }
  // The share of an input of their own in them [M, hidden]: what `Add` would add for these rows of kAttended or
  // kProduct.
  void Project(LayerInput input, const LayerWeights& w, const float* rows, int64_t M, float* out);

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
  std::string spill_folder_;
  StateBuffer x_;                   // [tokens, hidden]
  StateBuffer kept_;                // [tokens, hidden]; only after Keep
  StateBuffer attended_;            // [tokens, H * D]
  std::vector<float> normed_, up_;  // of one chunk
};

}  // namespace sage
