// The decoder-only transformer that every architecture of engine/models configures: load, embed, layers, head.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/api/backend.h"
#include "engine/api/checkpoint_format.h"
#include "engine/api/communicator.h"
#include "engine/api/kv_strategy.h"
#include "engine/api/linear_strategy.h"
#include "engine/api/model.h"
#include "engine/base/cancel.h"

namespace sage {

// The paged KV memory of one engine: `pages` pages in each layer, one arena a layer, layers share page numbers.
class KvArena {
 public:
  // `layout` without what the plan says: sink pages and scales.
  static absl::StatusOr<std::unique_ptr<KvArena>> Allocate(const KvPlan& plan, const KvLayout& layout, int64_t pages,
                                                           const Backend& backend);
  // One strategy for all layers.
  static absl::StatusOr<std::unique_ptr<KvArena>> Allocate(std::string_view kv_strategy, const KvLayout& layout,
                                                           int64_t layers, int64_t pages, const Backend& backend);
  const KvKernel& kernel(int64_t l) const { return *kernels_[static_cast<size_t>(l)]; }
  const KvLayout& layout() const { return layout_; }
  int64_t pages() const { return pages_; }
  size_t bytes() const { return bytes_; }
  size_t page_bytes() const { return pages_ == 0 ? 0 : bytes_ / static_cast<size_t>(pages_); }  // of all layers
  uint8_t* layer(int64_t l) const { return arenas_[static_cast<size_t>(l)].as<uint8_t>(); }

 private:
  KvLayout layout_;
  int64_t pages_ = 0;
  size_t bytes_ = 0;
  std::vector<std::unique_ptr<KvKernel>> kernels_;
  std::vector<DeviceBuffer> arenas_;
};

// The rows of one step. Sequences lie one after another: slice i covers rows [row_begin, row_begin + rows).
struct DecoderBatch {
  absl::Span<const int32_t> ids;              // [M]
  absl::Span<const SequenceSlice> sequences;  // pages for positions up to context + rows must be in the page table
  absl::Span<const int64_t> output_rows;      // rows whose final hidden state is wanted, ascending
};

// How linear layers are to be quantized on load: "" keeps what the checkpoint stores; otherwise a strategy (plug-in
// name) applied by rounding to nearest when the stored form differs. Embeddings keep their stored form, and so does
// lm_head unless head_strategy names another; a head tied to the embeddings becomes a second, quantized copy.
struct DecoderLoadSpec {
  std::string strategy;       // all linears of the layers
  std::string attn_strategy;  // q, k, v, o; overrides `strategy`
  std::string mlp_strategy;   // gate, up, down
  // Single modules by a pattern of their names, over the fields above; the last that matches counts, "" = as stored.
  std::vector<std::pair<std::string, std::string>> modules;
  std::string head_strategy;  // lm_head; `strategy` says nothing of it
  // Details of quantizing on load. group_size 0 = the largest of 128, 64, 32 that divides K of every layer, else the
  // largest in 16..256 that does, else per channel.
  LinearSpec linear;
  Priority priority = Priority::kLatency;
  // Tensor parallelism: this rank's heads and feed-forward width, sums over the ranks behind o and down. Every rank
  // loads and steps alike. Null: the whole model. The communicator outlives the decoder.
  Communicator* communicator = nullptr;
  DecoderLoadSpec() { linear.group_size = 0; }
};

struct BoundLayerInfo {
  std::string layer, strategy, kernel;
  size_t weight_bytes = 0;
};

class Decoder {
 public:
  // Progress unit "layers". Checked for cancellation each layer. Errors name the module.
  static absl::StatusOr<std::unique_ptr<Decoder>> Load(std::shared_ptr<Checkpoint> checkpoint,
                                                       const DecoderLoadSpec& spec, const Backend& backend,
                                                       ThreadPool& threads, const CancelToken& cancel,
                                                       const ProgressFn& progress);
  virtual ~Decoder() = default;

  // Heads and feed-forward width are those of this rank.
  virtual const DecoderConfig& config() const = 0;
  KvLayout kv_layout(int page_tokens) const { return {config().KH, config().D, page_tokens, config().H}; }
  // Embeds, runs all layers (storing K/V, attending) and writes the final normalised hidden state of output_rows to
  // hidden [R, hidden], or keeps it for StepLogits when `hidden` is null. INVALID_ARGUMENT on an id outside the
  // vocabulary.
  virtual absl::Status Forward(StepContext& ctx, const DecoderBatch& batch, KvArena& kv, float* hidden) = 0;
  // logits [R, V] of normalised hidden rows.
  virtual absl::Status Logits(StepContext& ctx, const float* hidden, int64_t rows, float* logits) = 0;
  // The same of output rows [begin, begin + rows) of the last Forward, which was given no `hidden`.
  virtual absl::Status StepLogits(StepContext& ctx, int64_t begin, int64_t rows, float* logits) = 0;

  virtual std::vector<BoundLayerInfo> bindings() const = 0;
  virtual size_t weight_bytes() const = 0;       // all weights held, embeddings included
  virtual std::string quantization() const = 0;  // "int4_w4a16", "bf16", or "a+b" when mixed
  // Bytes of scratch a step of M rows needs (admission).
  virtual size_t workspace_bytes(int64_t M) const = 0;
};

}  // namespace sage
