// The loop: shuffled texts, forward, error against what is wanted, backward, Adam, and looks at the held-out texts.
#include "engine/solvers/block_training.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <optional>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/solvers/block_math.h"
#include "engine/solvers/code_training.h"

namespace sage {
namespace {

constexpr double kLastRate = 0.05;  // of the full rate, where the cosine ends
constexpr float kLeastNorm = 0.5f, kMostNorm = 2.0f;

absl::Status Invalid(std::string_view reason, const std::string& message) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason, absl::StrCat("block training: ", message));
}

// Whole texts gathered for one pass.
struct Batch {
  std::vector<int64_t> lengths;
  std::vector<float> x, wanted, cos, sin, out, slope;
  int64_t rows = 0;
};

class Training {
 public:
  Training(const BlockTexts& texts, const BlockTrainingOptions& options, const CancelToken& cancel, ThreadPool& threads,
           TrainedBlock& block)
      : texts_(texts),
        options_(options),
        cancel_(cancel),
        threads_(threads),
        block_(block),
        shape_(block.shape),
        model_(block.shape, threads),
        weights_(block.weights) {
    begins_.push_back(0);
    for (const int64_t length : texts.lengths) begins_.push_back(begins_.back() + length);
    const int64_t count = static_cast<int64_t>(texts.lengths.size());
    const int64_t held = HeldOutTexts(options, count);
    for (int64_t i = 0; i < count; ++i) (i < count - held ? seen_ : held_).push_back(i);
    for (size_t i = 0; i < kBlockLinears; ++i) {
      TrainedLinear& linear = block.linears[i];
      if (!linear.trains) continue;
      const int64_t N = shape_.N(static_cast<int>(i)), K = shape_.K(static_cast<int>(i));
      codes_[i].emplace(linear.grid, N, K, linear.weight, linear.codes);
      values_[i].resize(static_cast<size_t>(N * K));
      weights_.weight[i] = values_[i].data();
    }
    for (size_t i = 0; i < kBlockNorms; ++i) {
      const int64_t width = block.weights.norm[i] == nullptr ? 0 : shape_.NormWidth(static_cast<int>(i));
      begun_norms_[i].assign(block.weights.norm[i], block.weights.norm[i] + width);
      norms_[i] = stored_norms_[i] = begun_norms_[i];
      of_norms_[i] = AdamState(width);
      if (width > 0) weights_.norm[i] = stored_norms_[i].data();
    }
  }

  absl::StatusOr<BlockTrainingResult> Run() {
    BlockTrainingResult result;
    std::vector<std::vector<int64_t>> plan;  // the texts of each step
    for (int epoch = 0; epoch < options_.epochs; ++epoch) AddBatches(epoch, &plan);
    const int64_t steps = static_cast<int64_t>(plan.size());
    result.steps = static_cast<int>(steps);
    ReadWeights();
    SAGE_ASSIGN_OR_RETURN(result.start_loss, HeldOutLoss());
    if (!std::isfinite(result.start_loss)) return Invalid("NON_FINITE_LOSS", "the block's output is not finite");
    result.loss = result.start_loss;
    Keep();
    for (int64_t step = 0; step < steps; ++step) {
      SAGE_RETURN_IF_ERROR(cancel_.Check());
      Learn(plan[static_cast<size_t>(step)], step, steps);
      if ((step + 1) * options_.checks / steps == step * options_.checks / steps) continue;
      SAGE_ASSIGN_OR_RETURN(const double loss, HeldOutLoss());
      if (!(loss < result.loss)) continue;
      result.loss = loss;
      result.best_step = static_cast<int>(step) + 1;
      Keep();
    }
    return result;
  }

 private:
  // The steps of an epoch. An own shuffle: the library's differs from one to the next.
  void AddBatches(int epoch, std::vector<std::vector<int64_t>>* plan) const {
    std::mt19937_64 generator(options_.seed + static_cast<uint64_t>(epoch) * 0x9e3779b97f4a7c15u);
    std::vector<int64_t> order = seen_;
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[generator() % i]);
    int64_t tokens = options_.batch_tokens;
    for (const int64_t text : order) {
      if (tokens >= options_.batch_tokens) {
        plan->emplace_back();
        tokens = 0;
      }
      plan->back().push_back(text);
      tokens += texts_.lengths[static_cast<size_t>(text)];
    }
  }

  void Gather(absl::Span<const int64_t> texts) {
    batch_.lengths.clear();
    batch_.rows = 0;
    for (const int64_t text : texts) {
      batch_.lengths.push_back(texts_.lengths[static_cast<size_t>(text)]);
      batch_.rows += batch_.lengths.back();
    }
    const int64_t hidden = shape_.hidden, half = shape_.D / 2;
    for (auto* rows : {&batch_.x, &batch_.wanted, &batch_.out, &batch_.slope}) {
      rows->resize(static_cast<size_t>(batch_.rows * hidden));
    }
    for (auto* rows : {&batch_.cos, &batch_.sin}) rows->resize(static_cast<size_t>(batch_.rows * half));
    int64_t row = 0;
    for (const int64_t text : texts) {
      const int64_t begin = begins_[static_cast<size_t>(text)], length = texts_.lengths[static_cast<size_t>(text)];
      std::copy_n(texts_.x + begin * hidden, length * hidden, batch_.x.data() + row * hidden);
      std::copy_n(texts_.wanted + begin * hidden, length * hidden, batch_.wanted.data() + row * hidden);
      texts_.rope(length, batch_.cos.data() + row * half, batch_.sin.data() + row * half);
      row += length;
    }
  }

  // Forward of the batch; the error of each token counts relative to the size of what is wanted. Leaves its gradient.
  double Error() {
    model_.Forward(weights_, {batch_.lengths, batch_.x.data(), batch_.cos.data(), batch_.sin.data()},
                   batch_.out.data());
    const int64_t hidden = shape_.hidden;
    std::vector<double> errors(static_cast<size_t>(batch_.rows));
    threads_.ParallelFor(batch_.rows, 32, [&](int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; ++m) {
        const float* wanted = batch_.wanted.data() + m * hidden;
        const float* out = batch_.out.data() + m * hidden;
        float* slope = batch_.slope.data() + m * hidden;
        const float size = DotOf(wanted, wanted, hidden) / static_cast<float>(hidden);
        const float inverse = 1.0f / std::max(size, 1e-12f);
        for (int64_t k = 0; k < hidden; ++k) slope[k] = out[k] - wanted[k];
        errors[static_cast<size_t>(m)] = static_cast<double>(DotOf(slope, slope, hidden) * inverse);
        for (int64_t k = 0; k < hidden; ++k) slope[k] *= inverse;
      }
    });
    return std::accumulate(errors.begin(), errors.end(), 0.0) / static_cast<double>(hidden);
  }

  absl::StatusOr<double> HeldOutLoss() {
    double sum = 0;
    int64_t tokens = 0;
    std::vector<int64_t> texts;
    for (size_t i = 0; i < held_.size(); ++i) {
      texts.push_back(held_[i]);
      int64_t rows = 0;
      for (const int64_t text : texts) rows += texts_.lengths[static_cast<size_t>(text)];
      if (rows < options_.batch_tokens && i + 1 < held_.size()) continue;
      SAGE_RETURN_IF_ERROR(cancel_.Check());
      Gather(texts);
      sum += Error();
      tokens += batch_.rows;
      texts.clear();
    }
    return sum / static_cast<double>(tokens);
  }

  void Learn(absl::Span<const int64_t> texts, int64_t step, int64_t steps) {
    Gather(texts);
    Error();
    model_.Backward(weights_, batch_.slope.data(), &gradient_);
    const double turn = std::numbers::pi * static_cast<double>(step) / static_cast<double>(steps);
    const AdamStep adam = {kLastRate + (1 - kLastRate) * 0.5 * (1 + std::cos(turn)), static_cast<int>(step) + 1};
    for (size_t i = 0; i < kBlockLinears; ++i) {
      if (!codes_[i].has_value()) continue;
      codes_[i]->Learn(gradient_.weight[i].data(), adam, options_.code_rate, options_.scale_rate, threads_);
    }
    for (size_t i = 0; i < kBlockNorms; ++i) LearnNorm(i, adam);
    ReadWeights();
  }

  void LearnNorm(size_t norm, const AdamStep& adam) {
    std::vector<float>& values = norms_[norm];
    const std::vector<float>& begun = begun_norms_[norm];
    if (values.empty() || !(options_.norm_rate > 0)) return;
    float* slope = gradient_.norm[norm].data();
    for (size_t k = 0; k < values.size(); ++k) slope[k] *= begun[k];
    of_norms_[norm].Move(0, static_cast<int64_t>(values.size()), adam, options_.norm_rate, slope);
    for (size_t k = 0; k < values.size(); ++k) {
      const float low = std::min(kLeastNorm * begun[k], kMostNorm * begun[k]);
      const float high = std::max(kLeastNorm * begun[k], kMostNorm * begun[k]);
      values[k] = std::clamp(values[k] - slope[k] * begun[k], low, high);
      stored_norms_[norm][k] = RoundToDType(values[k], block_.norm_dtype[norm]);
    }
  }

  void ReadWeights() {
    for (size_t i = 0; i < kBlockLinears; ++i) {
      if (codes_[i].has_value()) codes_[i]->Values(values_[i].data(), threads_);
    }
  }

  void Keep() {
    for (size_t i = 0; i < kBlockLinears; ++i) {
      if (codes_[i].has_value()) codes_[i]->Read(&block_.linears[i].codes, threads_);
    }
    block_.norms = stored_norms_;
  }

  const BlockTexts& texts_;
  const BlockTrainingOptions& options_;
  const CancelToken& cancel_;
  ThreadPool& threads_;
  TrainedBlock& block_;
  const BlockShape shape_;
  DecoderBlock model_;
  BlockWeights weights_;
  std::vector<int64_t> begins_, seen_, held_;
  std::array<std::optional<CodeTraining>, kBlockLinears> codes_;
  std::array<std::vector<float>, kBlockLinears> values_;
  std::array<std::vector<float>, kBlockNorms> begun_norms_, norms_, stored_norms_;
  std::array<AdamState, kBlockNorms> of_norms_;
  BlockGradient gradient_;
  Batch batch_;
};

absl::Status CheckBlock(const BlockTexts& texts, const BlockTrainingOptions& options, const TrainedBlock& block) {
  const BlockShape& s = block.shape;
  if (s.hidden < 1 || s.ffn < 1 || s.H < 1 || s.KH < 1 || s.D < 2 || s.D % 2 != 0 || s.H % s.KH != 0) {
    return Invalid("BAD_SHAPE", absl::StrCat("heads must be a multiple of kv heads and head sizes even, got H=", s.H,
                                             ", KH=", s.KH, ", D=", s.D));
  }
  if (texts.lengths.size() < 2) {
    return Invalid("TOO_FEW_TEXTS", absl::StrCat("one text is held out and others are learned from: there must be at "
                                                 "least 2, got ",
                                                 texts.lengths.size()));
  }
  for (const int64_t length : texts.lengths) {
    if (length < 1) return Invalid("EMPTY_TEXT", absl::StrCat("texts must have tokens, got ", length));
  }
  if (options.epochs < 1 || options.epochs > 1000 || options.checks < 1 || options.checks > 1000 ||
      options.batch_tokens < 1 || !(options.held_out >= 0 && options.held_out < 1)) {
    return Invalid("BAD_SEARCH",
                   absl::StrCat("epochs and checks must be 1..1000, batch_tokens positive and held_out below 1, got ",
                                options.epochs, ", ", options.checks, ", ", options.batch_tokens));
  }
  for (int i = 0; i < kBlockLinears; ++i) {
    const TrainedLinear& linear = block.linears[static_cast<size_t>(i)];
    const int64_t N = s.N(i), K = s.K(i);
    if (!linear.trains) {
      if (block.weights.weight[static_cast<size_t>(i)] == nullptr) return Invalid("NO_WEIGHT", "a linear has none");
      continue;
    }
    const absl::Span<const float> weight(linear.weight, static_cast<size_t>(N * K));
    SAGE_RETURN_IF_ERROR(CheckGridProblem("block training", weight, N, K, linear.grid));
    SAGE_RETURN_IF_ERROR(CheckGridStart("block training", linear.codes, N, K, linear.grid));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t HeldOutTexts(const BlockTrainingOptions& options, int64_t texts) {
  if (texts < 2) return 0;
  const double share = options.held_out * static_cast<double>(texts);
  return std::clamp<int64_t>(static_cast<int64_t>(std::llround(share)), 1, texts - 1);
}

absl::StatusOr<BlockTrainingResult> TrainBlock(const BlockTexts& texts, const BlockTrainingOptions& options,
                                               const CancelToken& cancel, ThreadPool& threads, TrainedBlock* block) {
  SAGE_RETURN_IF_ERROR(CheckBlock(texts, options, *block));
  return Training(texts, options, cancel, threads, *block).Run();
}

int64_t BlockTrainingBytes(const BlockShape& shape, int64_t batch_tokens, int64_t longest) {
  int64_t weights = 0;
  for (int i = 0; i < kBlockLinears; ++i) weights += shape.N(i) * shape.K(i);
  // Latents, two averages, values and gradients in f32; codes of the start and the best.
  return weights * (5 * 4 + 2) + DecoderBlock::WorkingBytes(shape, batch_tokens + longest);
}

}  // namespace sage
