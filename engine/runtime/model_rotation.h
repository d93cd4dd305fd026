// Rotations of a whole model that change none of its outputs: QuaRot's R1 and R2, folded into the weights.
//
// R1 [hidden, hidden] is orthogonal and turns the hidden states: what writes them (embeddings, o, down) gives rotated
// values, what reads them (q, k, v, gate, up, head) takes the rotation back. A norm commutes with it only when its own
// weights are one, so those are multiplied into the linears behind it first. A head that shares the embeddings'
// matrix needs one of its own then: it takes the final norm's weights, and the embeddings do not.
// R2 [D, D] turns the values of each kv head: v's rows, and o's columns of the query heads that read them.
//
// Each is diag(signs) H / sqrt(n) with signs from a seed and H a Hadamard matrix: outliers of a few channels are spread
// over all, which quantization in groups bears better. Nothing is rotated while the model runs.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/api/model.h"
#include "engine/base/json.h"
#include "engine/base/thread_pool.h"
#include "engine/solvers/hadamard.h"

namespace sage {

class ModelRotation {
 public:
  // INVALID_ARGUMENT (NO_HADAMARD_MATRIX) when no Hadamard matrix of the hidden size is known. A head size without one
  // only leaves R2 out.
  static absl::StatusOr<std::unique_ptr<ModelRotation>> Create(const DecoderConfig& config, uint64_t seed);

  // "model.layers.3.input_layernorm" of the norm whose weights the linear takes; empty when it reads something else.
  static std::string NormBefore(const LinearSlot& slot);
  // Whether a plain tensor is the weight of a norm that is folded away.
  static bool FoldsNorm(const std::string& tensor);

  // weight: [rows, K] f32, rows of a linear that is `slot`'s, all of them where the linear writes hidden states or
  // values. norm: the weights of NormBefore [K], or empty.
  void Rotate(const LinearSlot& slot, absl::Span<const float> norm, int64_t rows, float* weight,
              ThreadPool& threads) const;
  void RotateBias(const LinearSlot& slot, float* bias) const;  // [N]
  void RotateEmbeddings(float* rows, int64_t M, ThreadPool& threads) const;

  // What the artifact's record says: constructions and seed.
  Json Record() const;

 private:
  struct Turn {  // one rotation: diag(signs) H / sqrt(n)
    const Hadamard* matrix;
    std::vector<float> signs;
  };
  ModelRotation(Hadamard hidden, std::unique_ptr<Hadamard> head, uint64_t seed);
  Turn HeadTurn(int64_t layer) const;
  // x <- (x * factors) R for each run of `order` values of each row.
  static void TurnRows(const Turn& turn, absl::Span<const float> factors, float* weight, int64_t rows, int64_t columns,
                       ThreadPool& threads);
  // The same down the columns: each run of `order` rows.
  static void TurnColumns(const Turn& turn, float* weight, int64_t rows, int64_t columns, ThreadPool& threads);

  Hadamard hidden_;
  std::unique_ptr<Hadamard> head_;  // null: no R2
  uint64_t seed_;
  Turn r1_;
};

}  // namespace sage
