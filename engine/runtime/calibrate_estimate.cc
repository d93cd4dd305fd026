// Sizes of the buffers of layer_stream, layer_statistics and the solvers, added up, and their work.
#include "engine/runtime/calibrate_estimate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/status.h"
#include "engine/runtime/block_calibration.h"
#include "engine/runtime/layer_stream.h"
#include "engine/solvers/block_training.h"
#include "engine/solvers/dense_algebra.h"

namespace sage {
namespace {

constexpr int64_t kFloat = 4, kDouble = 8;
constexpr int64_t kSampleRows = 512;

// Products of a weight with the Gram matrix: a search over a few rows, descent in rounds; learned rounding takes one a
// step.
double SolverProducts(const CalibrationPlan& plan) {
  const std::string_view name = plan.calibrator->name;
  const double search = plan.calibrator->choose_scales != nullptr ? 8 : 0;
  const double descent = plan.calibrator->compensates ? 12 : 1;
  return search + descent + (name == "autoround" ? 200 + 12 : 0);
}

int64_t WorkingBytes(const LinearSlot& slot, bool compensates) {
  const int64_t matrix = slot.K * slot.K, weight = slot.N * slot.K;
  const bool added = slot.kind == "o_proj" || slot.kind == "down_proj";
  // Sums in f64 and as f32. Beside the unquantized model: twice over two halves, and with them the outputs that are
  // wanted or the shift of the inputs.
  const int64_t half = matrix / 2 * kDouble + matrix * kFloat + (added ? weight : matrix) * (kDouble + kFloat);
  const int64_t sums = compensates ? 2 * half + matrix * kFloat : matrix / 2 * kDouble + matrix * kFloat;
  // Factors of the solver in f64, and copies of the weight: target, updates, codes, differences, gradients.
  return sums + 2 * matrix * kDouble + 8 * weight * kFloat;
}

// Training of a block: the states before it, its weights as they were to be, and what the steps take once the sums of
// the solvers are gone; forward and two products backward over the texts, again and again.
void AddTraining(const CalibrationPlan& plan, int64_t sequence_length, CalibrationEstimate* estimate) {
  const BlockTrainingOptions& training = *plan.calibrator->training;
  const DecoderConfig& c = plan.source->config();
  estimate->activation_bytes += estimate->tokens * c.hidden * kFloat;
  const double passes = 3.0 * training.epochs * (1 - training.held_out) + training.held_out * (training.checks + 1);
  for (const LinearSlot& slot : plan.source->linears()) {
    if (slot.layer < 0) continue;
    const int64_t weight = slot.N * slot.K;
    estimate->operations += 2.0 * static_cast<double>(weight) * static_cast<double>(estimate->tokens) * passes;
    if (slot.layer == 0) estimate->layer_bytes += weight * (kFloat + 2);
  }
  estimate->statistics_bytes = std::max(estimate->statistics_bytes,
                                        BlockTrainingBytes(BlockShapeOf(c, 0), training.batch_tokens, sequence_length));
}

}  // namespace

CalibrationEstimate EstimateCalibration(const CalibrationPlan& plan, int64_t samples, int64_t sequence_length) {
  CalibrationEstimate out;
  const DecoderConfig& c = plan.source->config();
  const bool looks = plan.calibrator->needs_activations, compensates = plan.calibrator->compensates;
  const int64_t streams = looks ? (compensates ? 2 : 1) : 0;
  out.tokens = looks ? samples * sequence_length : 0;
  const double tokens = static_cast<double>(out.tokens);
  out.activation_bytes = streams * out.tokens * (c.hidden + static_cast<int64_t>(c.H) * c.D) * kFloat;
  int64_t largest = 0;
  for (const LinearSlot& slot : plan.source->linears()) {
    const double weight = static_cast<double>(slot.N) * static_cast<double>(slot.K);
    if (slot.layer == 0) out.layer_bytes += (1 + streams) * slot.N * slot.K * kFloat;
    if (slot.layer < 0 || !plan.Quantizes(slot)) continue;
    largest = std::max(largest, slot.N * slot.K);
    if (!looks) continue;
    out.statistics_bytes = std::max(out.statistics_bytes, WorkingBytes(slot, compensates));
    const double K = static_cast<double>(slot.K);
    // Passes of the streams over each weight, the sums (shared by layers that read one input), the solver.
    out.operations += 2 * weight * tokens * 3;
    out.operations += K * K * tokens * 2 / (slot.kind == "down_proj" || slot.kind == "o_proj" ? 1 : 3);
    out.operations += 2 * weight * K * SolverProducts(plan) + 4.0 * K * K * K;
  }
  out.layer_bytes += 4 * largest * kFloat;
  if (plan.source->rotation() != nullptr) {
    const int64_t written = static_cast<int64_t>(DTypeSize(plan.source->float_dtype()));
    out.table_bytes = 2 * c.V * c.hidden * written + 1024 * c.hidden * kFloat;
  }
  if (looks) {
    const int64_t chunk = LayerStream::kChunkRows * (3 * static_cast<int64_t>(c.ffn) + 4 * c.hidden) * kFloat;
    out.statistics_bytes += streams * chunk + kSampleRows * static_cast<int64_t>(c.ffn) * kFloat;
  }
  if (plan.calibrator->training != nullptr) AddTraining(plan, sequence_length, &out);
  return out;
}

namespace {

absl::Status TooLarge(const CalibrationEstimate& estimate, const std::string& reason, const std::string& rule,
                      int64_t limit) {
  const auto text = [](int64_t bytes) { return absl::StrCat(bytes); };
  return MakeError(
      absl::StatusCode::kResourceExhausted, reason,
      absl::StrCat(rule, " must hold one layer and its statistics, ", estimate.peak_bytes(), " bytes (weights ",
                   estimate.layer_bytes, ", statistics and solver ", estimate.statistics_bytes, "; activations of ",
                   estimate.activation_bytes, " bytes would go to disk), got ", limit),
      {{"needed", text(estimate.peak_bytes())},
       {"max_memory", text(limit)},
       {"layer", text(estimate.layer_bytes)},
       {"statistics", text(estimate.statistics_bytes)},
       {"activations", text(estimate.activation_bytes)}});
}

}  // namespace

absl::Status FitIntoMemory(int64_t max_memory, int64_t available, CalibrationEstimate* estimate) {
  estimate->spill = false;
  if (max_memory > 0 && estimate->peak_bytes() > max_memory) {
    estimate->spill = true;
    if (estimate->peak_bytes() > max_memory) {
      return TooLarge(*estimate, "CALIBRATION_EXCEEDS_MEMORY", "max_memory:", max_memory);
    }
  }
  if (available < 0 || estimate->peak_bytes() <= available) return absl::OkStatus();
  estimate->spill = estimate->activation_bytes > 0;
  if (estimate->peak_bytes() <= available) return absl::OkStatus();
  // The kernel would end the daemon and every engine with it.
  return TooLarge(*estimate, "INSUFFICIENT_MEMORY", "calibration: the available memory", available);
}

double MeasureOperationsRate(ThreadPool& threads) {
  constexpr int64_t kSize = 384;
  std::vector<float> a(kSize * kSize, 0.5f), b(kSize * kSize, 0.25f), c(kSize * kSize);
  double best = 0;
  for (int i = 0; i < 3; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    MultiplyTransposed(a.data(), b.data(), kSize, kSize, kSize, c.data(), threads);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (seconds > 0) best = std::max(best, 2.0 * kSize * kSize * kSize / seconds);
  }
  return best;
}

std::string EstimateText(const CalibrationEstimate& estimate, double seconds) {
  const auto gib = [](int64_t bytes) { return absl::StrFormat("%.2f GiB", static_cast<double>(bytes) / (1 << 30)); };
  std::string out = absl::StrCat(estimate.tokens, " tokens, ", gib(estimate.peak_bytes()), " at the peak");
  if (estimate.spill) absl::StrAppend(&out, " and ", gib(estimate.activation_bytes), " of activations on disk");
  return absl::StrCat(out, ", about ",
                      seconds < 90 ? absl::StrFormat("%.0f s", std::ceil(seconds))
                                   : absl::StrFormat("%.0f min", std::ceil(seconds / 60)));
}

}  // namespace sage
