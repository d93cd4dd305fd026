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
  DeviceBuffer input_norm;           // [hidden] f32
  DeviceBuffer post_attention_norm;  // [hidden] f32
  DeviceBuffer q_norm, k_norm;       // [D] f32, empty without q/k norm
  BoundProjection q, k, v, o, gate, up, down;
};

class BoundDecoder final : public Decoder {
 public:
  BoundDecoder(DecoderConfig config, const Backend& backend)
      : config_(std::move(config)),
        backend_(backend),
        memory_(backend.memory()),
        rope_(config_.rope, config_.D, config_.max_position) {}

  const DecoderConfig& config() const override { return config_; }
  absl::Status Forward(StepContext& ctx, const DecoderBatch& batch, KvArena& kv, float* hidden) override;
  absl::Status Logits(StepContext& ctx, const float* hidden, int64_t rows, float* logits) override;
  absl::Status StepLogits(StepContext& ctx, int64_t begin, int64_t rows, float* logits) override;
  std::vector<BoundLayerInfo> bindings() const override;
  size_t weight_bytes() const override { return weight_bytes_; }
  std::string quantization() const override { return quantization_; }
  size_t workspace_bytes(int64_t M) const override;

 private:
  friend class DecoderLoader;

  // Scratch of a step of M rows; grows to the largest step seen.
  struct Workspace {
    int64_t M = 0;
    DeviceBuffer x, normed, qkv, attended, projected, gate_up, product, cos, sin, ids;
    DeviceBuffer hidden;  // final rows of the last step
    DeviceBuffer logits, head_input;
    std::vector<float> host_x, host_cos, host_sin;  // what is uploaded, unless kernels read host memory
    std::vector<int32_t> host_ids;
  };
  // What the operators of a step are given.
  struct Step {
    int64_t M = 0, wanted = 0;
    bool repeats = false;  // a decode step, padded to the rows of a recording
    bool trims = false;    // behind the keys and values of the last layer only the wanted rows go on
    absl::Span<const int64_t> output_rows;
    std::vector<SequenceSlice> padded, kept;
    std::vector<int64_t> padded_rows;
    StepSequences sequences, last;
    float* hidden = nullptr;
  };
  void UseDevice(StepContext& ctx) const {
    ctx.memory = &memory_;
    ctx.activations->UseMemory(memory_);
  }
  absl::Status Reserve(int64_t M);
  absl::Status ReserveLogits(int64_t rows);
  // Pads a decode step, and finds the rows that go on behind the last layer.
  absl::Status Plan(const DecoderBatch& batch, const StepContext& ctx, const KvLayout& layout, Step* step) const;
  // Puts rows of the embedding table and the rotation into the workspace.
  absl::Status Prepare(const DecoderBatch& batch, const Step& step);
  absl::Status CheckIds(absl::Span<const int32_t> ids) const;
  absl::Status HeadLogits(StepContext& ctx, const float* hidden, int64_t rows, float* logits);
  void RunLayers(StepContext& ctx, const Step& step, KvArena& kv);
  void NormRows(StepContext& ctx, const Step& step);
  // q, k and v of the normed rows with their rotation; keys and values go into the cache.
  void Project(StepContext& ctx, size_t l, const StepSequences& sequences, KvArena& kv, int64_t M);
  // Attention, o and the residual sum of the first M rows.
  void Attend(StepContext& ctx, size_t l, const StepSequences& sequences, KvArena& kv, int64_t M);
  // Moves the output rows of x and q to the front.
  void KeepRows(const Step& step);
  void Mlp(StepContext& ctx, size_t l, int64_t M);
  // Adds what o or down gave (summed over the ranks) to the residual, and norms it for what comes next unless that is
  // the end.
  void AddProjected(StepContext& ctx, int64_t M, const DeviceBuffer* norm);
  // Shows the input to whoever collects statistics, on the host.
  void Observe(StepContext& ctx, const BoundProjection& projection, const StepValue& x) const;
  void Run(StepContext& ctx, const BoundProjection& projection, const StepValue& x, float* out, int64_t stride) const;
  // Announces what the next operator streams, where reading it is what a step of M rows waits for.
  void ReadNext(StepContext& ctx, std::initializer_list<const BoundProjection*> next, int64_t M) const;
  // Projections of one value, each into its columns of `out`, as one job of the threads; `name` is the profile's.
  struct Product {
    const BoundProjection* projection;
    float* out;
  };
  void RunTogether(StepContext& ctx, std::string_view name, std::initializer_list<Product> products, const StepValue& x,
                   int64_t stride);
  // Timed with the kernels done, when the step is profiled.
  template <typename Work>
  void Time(StepContext& ctx, std::string_view name, int64_t bytes, const Work& work) const {
    Timed(ctx, name, bytes, [&] {
      work();
      if (ctx.profile != nullptr && !memory_.is_host()) memory_.Wait();
    });
  }

  DecoderConfig config_;
  const Backend& backend_;
  DeviceMemory& memory_;
  Communicator* communicator_ = nullptr;
  absl::Status sum_status_;
  Rope rope_;
  std::shared_ptr<Checkpoint> checkpoint_;
  StoredLinear embedding_;
  const LinearStrategyDef* embedding_strategy_ = nullptr;
  std::unique_ptr<BoundRows> embedding_rows_;  // null: rows are made on the host
  std::vector<BoundLayer> layers_;
  DeviceBuffer final_norm_;
  BoundProjection head_;
  size_t weight_bytes_ = 0;
  std::string quantization_;
  Workspace work_;
  ProductGroup group_;
};

}  // namespace sage
