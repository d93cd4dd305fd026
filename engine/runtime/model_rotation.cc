// R1 and R2 by rows and by columns, in f64: each value is rounded to f32 once.
#include "engine/runtime/model_rotation.h"

#include <algorithm>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

// Columns that are gathered at once, so that a cache line of each row serves them all.
constexpr int64_t kColumns = 16;

// What writes hidden states takes R1 down its columns; what reads them along its rows.
bool WritesHidden(const LinearSlot& slot) { return slot.kind == "o_proj" || slot.kind == "down_proj"; }

}  // namespace

ModelRotation::ModelRotation(Hadamard hidden, std::unique_ptr<Hadamard> head, uint64_t seed)
    : hidden_(std::move(hidden)), head_(std::move(head)), seed_(seed) {
  r1_ = {&hidden_, RandomSigns(hidden_.order(), seed)};
}

absl::StatusOr<std::unique_ptr<ModelRotation>> ModelRotation::Create(const DecoderConfig& config, uint64_t seed) {
  absl::StatusOr<Hadamard> hidden = Hadamard::Create(config.hidden);
  if (!hidden.ok()) return Annotate(hidden.status(), absl::StrCat("rotate: hidden size ", config.hidden));
  std::unique_ptr<Hadamard> head;
  absl::StatusOr<Hadamard> of_head = Hadamard::Create(config.D);
  if (of_head.ok()) head = std::make_unique<Hadamard>(*std::move(of_head));
  return std::unique_ptr<ModelRotation>(new ModelRotation(*std::move(hidden), std::move(head), seed));
}

std::string ModelRotation::NormBefore(const LinearSlot& slot) {
  if (slot.layer < 0) return "model.norm";
  const std::string prefix = absl::StrCat("model.layers.", slot.layer, ".");
  if (slot.kind == "q_proj" || slot.kind == "k_proj" || slot.kind == "v_proj") return prefix + "input_layernorm";
  if (slot.kind == "gate_proj" || slot.kind == "up_proj") return prefix + "post_attention_layernorm";
  return "";
}

bool ModelRotation::FoldsNorm(const std::string& tensor) {
  return tensor == "model.norm.weight" || absl::EndsWith(tensor, ".input_layernorm.weight") ||
         absl::EndsWith(tensor, ".post_attention_layernorm.weight");
}

// Every layer has its own signs: they cost nothing, and no two layers share an unlucky draw.
ModelRotation::Turn ModelRotation::HeadTurn(int64_t layer) const {
  const uint64_t of_layer = seed_ + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(layer + 1);
  return {head_.get(), RandomSigns(head_->order(), of_layer)};
}

void ModelRotation::TurnRows(const Turn& turn, absl::Span<const float> factors, float* weight, int64_t rows,
                             int64_t columns, ThreadPool& threads) {
  const int64_t order = turn.matrix->order();
  threads.ParallelFor(rows, 8, [&](int64_t begin, int64_t end) {
    std::vector<double> row(static_cast<size_t>(order)), work(row.size());
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t run = 0; run < columns; run += order) {
        float* const at = weight + n * columns + run;
        for (int64_t i = 0; i < order; ++i) {
          const size_t k = static_cast<size_t>(i);
          row[k] = static_cast<double>(at[i]) * turn.signs[k];
          if (!factors.empty()) row[k] *= static_cast<double>(factors[static_cast<size_t>(run + i)]);
        }
        turn.matrix->RotateRow(row.data(), false, work.data());
        for (int64_t i = 0; i < order; ++i) at[i] = static_cast<float>(row[static_cast<size_t>(i)]);
      }
    }
  });
}

void ModelRotation::TurnColumns(const Turn& turn, float* weight, int64_t rows, int64_t columns, ThreadPool& threads) {
  const int64_t order = turn.matrix->order(), blocks = (columns + kColumns - 1) / kColumns;
  threads.ParallelFor(rows / order * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> gathered(static_cast<size_t>(order * kColumns)), work(static_cast<size_t>(order));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % blocks * kColumns, width = std::min(kColumns, columns - first);
      float* const at = weight + task / blocks * order * columns + first;
      for (int64_t i = 0; i < order; ++i) {
        const double sign = turn.signs[static_cast<size_t>(i)];
        for (int64_t c = 0; c < width; ++c) gathered[static_cast<size_t>(c * order + i)] = sign * at[i * columns + c];
      }
      for (int64_t c = 0; c < width; ++c) turn.matrix->RotateRow(gathered.data() + c * order, false, work.data());
      for (int64_t i = 0; i < order; ++i) {
        for (int64_t c = 0; c < width; ++c) {
          at[i * columns + c] = static_cast<float>(gathered[static_cast<size_t>(c * order + i)]);
        }
      }
    }
  });
}

void ModelRotation::Rotate(const LinearSlot& slot, absl::Span<const float> norm, int64_t rows, float* weight,
                           ThreadPool& threads) const {
  if (!WritesHidden(slot)) TurnRows(r1_, norm, weight, rows, slot.K, threads);
  if (head_ != nullptr && slot.kind == "v_proj") TurnColumns(HeadTurn(slot.layer), weight, rows, slot.K, threads);
  if (head_ != nullptr && slot.kind == "o_proj") TurnRows(HeadTurn(slot.layer), {}, weight, rows, slot.K, threads);
  if (WritesHidden(slot)) TurnColumns(r1_, weight, rows, slot.K, threads);
}

void ModelRotation::RotateBias(const LinearSlot& slot, float* bias) const {
  ThreadPool one(1);
  if (head_ != nullptr && slot.kind == "v_proj") TurnRows(HeadTurn(slot.layer), {}, bias, 1, slot.N, one);
  if (WritesHidden(slot)) TurnRows(r1_, {}, bias, 1, slot.N, one);
}

void ModelRotation::RotateEmbeddings(float* rows, int64_t M, ThreadPool& threads) const {
  TurnRows(r1_, {}, rows, M, hidden_.order(), threads);
}

Json ModelRotation::Record() const {
  return {{"hidden_states", hidden_.Construction()},
          {"values", head_ == nullptr ? Json() : Json(head_->Construction())},
          {"seed", seed_}};
}

}  // namespace sage
