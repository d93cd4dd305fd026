// The bound form of a decoder: every name resolved, every kernel chosen; a step touches nothing else.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "engine/decoder/decoder.h"
#include "engine/decoder/rope.h"

namespace sage {

struct BoundProjection {
  std::string module;
  std::string strategy;
  std::unique_ptr<BoundLinear> linear;
};

struct BoundLayer {
  std::vector<float> input_norm;           // [hidden]
  std::vector<float> post_attention_norm;  // [hidden]
  std::vector<float> q_norm, k_norm;       // [D], empty without q/k norm
  BoundProjection q, k, v, o, gate, up, down;
};

class BoundDecoder final : public Decoder {
 public:
  BoundDecoder(DecoderConfig config, const Backend& backend)
      : config_(std::move(config)), backend_(backend), rope_(config_.rope, config_.D, config_.max_position) {}

  const DecoderConfig& config() const override { return config_; }
  absl::Status Forward(StepContext& ctx, const DecoderBatch& batch, KvArena& kv, float* hidden) override;
  void Logits(StepContext& ctx, const float* hidden, int64_t rows, float* logits) override;
  std::vector<BoundLayerInfo> bindings() const override;
  size_t weight_bytes() const override { return weight_bytes_; }
  std::string quantization() const override { return quantization_; }
  size_t workspace_bytes(int64_t M) const override;

 private:
  friend class DecoderLoader;

  // Scratch of a step of M rows; grows to the largest step seen.
  struct Workspace {
    int64_t M = 0;
    Tensor x, normed, qkv, attended, projected, gate_up, product, cos, sin;
  };
  absl::Status Reserve(int64_t M);
  absl::Status Embed(absl::Span<const int32_t> ids, float* x) const;
  // Norm, q, k and v with their rotation; keys and values go into the cache.
  void Project(StepContext& ctx, size_t l, const DecoderBatch& batch, KvArena& kv, int64_t M);
  // Attention, o and the residual sum of the first M rows.
  void Attend(StepContext& ctx, size_t l, absl::Span<const SequenceSlice> sequences, KvArena& kv, int64_t M);
  // Moves the output rows of x and q to the front; `kept` has a sequence of one row for each.
  void KeepRows(const DecoderBatch& batch, std::vector<SequenceSlice>& kept);
  void Mlp(StepContext& ctx, size_t l, int64_t M);
  void Run(StepContext& ctx, const BoundProjection& projection, const StepValue& x, float* out, int64_t stride) const;
  // Projections of one value, each into its columns of `out`, as one job of the threads; `name` is the profile's.
  struct Product {
    const BoundProjection* projection;
    float* out;
  };
  void RunTogether(StepContext& ctx, std::string_view name, std::initializer_list<Product> products, const StepValue& x,
                   int64_t stride);

  DecoderConfig config_;
  const Backend& backend_;
  Rope rope_;
  std::shared_ptr<Checkpoint> checkpoint_;
  StoredLinear embedding_;
  const LinearStrategyDef* embedding_strategy_ = nullptr;
  std::vector<BoundLayer> layers_;
  std::vector<float> final_norm_;
  BoundProjection head_;
  size_t weight_bytes_ = 0;
  std::string quantization_;
  Workspace work_;
  ProductGroup group_;
};

}  // namespace sage
