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
  bool is_gguf() const { return checkpoint_->format() == "gguf"; }
  // Shards: 0 .. L-1 are the layers, L holds embeddings, final norm and head.
  int64_t shard_count() const { return config_.L + 1; }
  std::vector<LinearSlot> ShardLinears(int64_t shard) const;

  // [N, K] f32 with rows in Hugging Face order.
  absl::StatusOr<Tensor> Weight(const LinearSlot& slot, ThreadPool& threads) const;
  // The linear as it is stored, when its strategy stores dense floats and no row moves; empty view otherwise.
  absl::StatusOr<TensorView> DenseWeight(const LinearSlot& slot) const;
  absl::StatusOr<StoredLinear> Stored(const LinearSlot& slot) const;
  // The bias of a linear in Hugging Face order; empty when it has none.
  absl::StatusOr<NamedTensor> Bias(const LinearSlot& slot) const;
  // Norms of a layer, or embeddings and the final norm; quantized embeddings are given as `float_dtype()`.
  absl::StatusOr<std::vector<NamedTensor>> PlainTensors(int64_t shard, ThreadPool& threads) const;
  // The same as f32 whatever the stored form, for comparisons.
  absl::StatusOr<std::vector<NamedTensor>> PlainValues(int64_t shard, ThreadPool& threads) const;
  // What dequantized parts and scales are written as: the model's dtype, else f16 for GGUF, else f32.
  DType float_dtype() const { return float_dtype_; }

 private:
  ArtifactSource() = default;
  // Row of the source that becomes row n of the artifact.
  std::vector<int64_t> RowOrder(const LinearSlot& slot) const;
  absl::StatusOr<NamedTensor> PlainTensor(const std::string& name, DType fallback, ThreadPool& threads) const;
  absl::StatusOr<std::vector<NamedTensor>> PlainTensorsAs(int64_t shard, DType fallback, ThreadPool& threads) const;

  std::shared_ptr<Checkpoint> checkpoint_;
  DecoderConfig config_;
  std::vector<LinearSlot> linears_;
  std::vector<TensorSlot> tensors_;
  DType float_dtype_ = DType::kF32;
  bool interleaved_ = false;
};

// f32 values as F32, F16 or BF16, rounded half to even.
absl::StatusOr<NamedTensor> ConvertFloats(const std::string& name, const float* values, const Shape& shape,
                                          DType dtype);
// The layer that a name belongs to ("model.layers.7.input_layernorm.weight" -> 7), or -1.
int64_t LayerOfName(const std::string& name);

}  // namespace sage
