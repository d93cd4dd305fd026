// A checkpoint read the way artifacts are written: Hugging Face names, row order and shapes, whatever the source's own
// form is.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/checkpoint_format.h"
#include "engine/api/linear_strategy.h"
#include "engine/api/model.h"
#include "engine/base/thread_pool.h"
#include "engine/runtime/model_rotation.h"

namespace sage {

// A tensor with its memory, named as it is stored.
struct NamedTensor {
  std::string name;
  TensorView view;
  std::shared_ptr<const void> owner;  // null when the checkpoint's map holds the bytes
};

class ArtifactSource {
 public:
  static absl::StatusOr<std::unique_ptr<ArtifactSource>> Open(const std::string& path);

  const Checkpoint& checkpoint() const { return *checkpoint_; }
  std::shared_ptr<Checkpoint> shared_checkpoint() const { return checkpoint_; }
  const DecoderConfig& config() const { return config_; }
  const std::vector<LinearSlot>& linears() const { return linears_; }
  // From now on everything is given as the rotated model has it. A head that shares the embeddings' matrix becomes a
  // linear of its own (config().tied_embeddings is false then).
  void Rotate(std::unique_ptr<ModelRotation> rotation);
  const ModelRotation* rotation() const { return rotation_.get(); }
  // Whether the source holds this linear only as its embeddings.
  bool SharesEmbeddings(const LinearSlot& slot) const { return slot.layer < 0 && head_was_tied_; }
  bool is_gguf() const { return checkpoint_->format() == "gguf"; }
  // Shards: 0 .. L-1 are the layers, L holds embeddings, final norm and head.
  int64_t shard_count() const { return config_.L + 1; }
  std::vector<LinearSlot> ShardLinears(int64_t shard) const;

  // [N, K] f32 with rows in Hugging Face order.
  absl::StatusOr<Tensor> Weight(const LinearSlot& slot, ThreadPool& threads) const;
  // The linear as it is stored, when its strategy stores dense floats and no row moves; empty view otherwise.
  absl::StatusOr<TensorView> DenseWeight(const LinearSlot& slot) const;
  // "<name>.weight" as floats of the stored dtype, else of `float_dtype()`.
  absl::StatusOr<NamedTensor> FloatWeight(const LinearSlot& slot, ThreadPool& threads) const;
  absl::StatusOr<StoredLinear> Stored(const LinearSlot& slot) const;
  // The bias of a linear in Hugging Face order; empty when it has none.
  absl::StatusOr<NamedTensor> Bias(const LinearSlot& slot) const;
  // Norms of a layer, or embeddings and the final norm; quantized embeddings are given as `float_dtype()`.
  absl::StatusOr<std::vector<NamedTensor>> PlainTensors(int64_t shard, ThreadPool& threads) const;
  // The same as f32 whatever the stored form, for comparisons.
  absl::StatusOr<std::vector<NamedTensor>> PlainValues(int64_t shard, ThreadPool& threads) const;
  // The hidden states of a token id [hidden], as the written embeddings give them.
  absl::Status EmbeddingRow(int64_t id, float* out) const;
  // What dequantized parts and scales are written as: the model's dtype, else f16 for GGUF, else f32.
  DType float_dtype() const { return float_dtype_; }

 private:
  ArtifactSource() = default;
  // Row of the source that becomes row n of the artifact.
  std::vector<int64_t> RowOrder(const LinearSlot& slot) const;
  // Weights of the norm that a rotation folds into the linear; empty when there is none.
  absl::StatusOr<std::vector<float>> FoldedNorm(const LinearSlot& slot) const;
  // Rotated embeddings or head, a few rows of f32 at a time. head: null for the embeddings.
  absl::StatusOr<NamedTensor> RotatedTable(const std::string& name, const LinearSlot* head, DType dtype,
                                           ThreadPool& threads) const;
  absl::StatusOr<NamedTensor> RotatedPlain(const std::string& name, DType fallback, ThreadPool& threads) const;
  DType EmbeddingDType(DType fallback) const;
  absl::StatusOr<NamedTensor> PlainTensor(const std::string& name, DType fallback, ThreadPool& threads) const;
  absl::StatusOr<std::vector<NamedTensor>> PlainTensorsAs(int64_t shard, DType fallback, ThreadPool& threads) const;

  std::shared_ptr<Checkpoint> checkpoint_;
  DecoderConfig config_;
  std::vector<LinearSlot> linears_;
  std::vector<TensorSlot> tensors_;
  DType float_dtype_ = DType::kF32;
  bool interleaved_ = false, head_was_tied_ = false;
  std::unique_ptr<ModelRotation> rotation_;
};

// f32 values as F32, F16 or BF16, rounded half to even.
absl::StatusOr<NamedTensor> ConvertFloats(const std::string& name, const float* values, const Shape& shape,
                                          DType dtype);
// The layer that a name belongs to ("model.layers.7.input_layernorm.weight" -> 7), or -1.
int64_t LayerOfName(const std::string& name);

}  // namespace sage
