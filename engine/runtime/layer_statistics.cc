// One pass over an input: magnitudes, Gram matrix, samples, and per half of the tokens the differences to the
// unquantized model.
#include "engine/runtime/layer_statistics.h"

#include <algorithm>
#include <optional>

#include "engine/base/status.h"

namespace sage {
namespace {

constexpr int64_t kSampleRows = 512;

// Magnitudes and sample rows of every method.
class InputSums {
 public:
  InputSums(int64_t K, int64_t tokens, ThreadPool& threads)
      : K_(K),
        stride_(std::max<int64_t>(1, (tokens + kSampleRows - 1) / kSampleRows)),
        magnitude_(K),
        threads_(threads) {}

  absl::Status Add(const float* x, int64_t M) {
    SAGE_RETURN_IF_ERROR(magnitude_.Add(x, M, K_, threads_));  // refuses values that are not finite
    for (int64_t m = 0; m < M; ++m, ++seen_) {
      if (seen_ % stride_ == 0) sample_.insert(sample_.end(), x + m * K_, x + (m + 1) * K_);
    }
    return absl::OkStatus();
  }
  InputStatistics Take() { return {K_, seen_, {}, magnitude_.Mean(), magnitude_.Max(), std::move(sample_), {}}; }

 private:
  int64_t K_, stride_, seen_ = 0;
  InputMagnitude magnitude_;
  std::vector<float> sample_;
  ThreadPool& threads_;
};

// The sums of half the tokens beside the unquantized model.
class HalfSums {
 public:
  HalfSums(int64_t K, int64_t hidden) : gram_(K), shift_(K) {
    if (hidden > 0) residual_.emplace(hidden, K);
  }
  void Add(const float* x_full, const float* x, const float* difference, int64_t M, ThreadPool& threads) {
    gram_.Add(x, M, threads);
    shift_.Add(x_full, x, M, threads);
    if (residual_.has_value()) residual_->Add(difference, x, M, threads);
  }
  InputStatistics::Half Take(ThreadPool& threads) {
    InputStatistics::Half out = {gram_.Matrix<float>(threads), shift_.Matrix<float>(threads), {}};
    if (residual_.has_value()) out.residual = residual_->Matrix<float>(threads);
    return out;
  }

 private:
  GramSum gram_;
  ShiftSum shift_;
  std::optional<CrossSum> residual_;
};

// Rows of the unquantized model as the folded one would have them, and what its residual stream has more.
class FullRows {
 public:
  FullRows(LayerStream& stream, const FullStream& full, const StatisticsRequest& request, int64_t hidden)
      : stream_(stream),
        full_(full),
        request_(request),
        K_(stream.Width(request.input)),
        hidden_(hidden),
        rows_(static_cast<size_t>(LayerStream::kChunkRows * K_)),
        difference_(static_cast<size_t>(LayerStream::kChunkRows * hidden)) {}

  void Read(int64_t begin, int64_t M) {
    full_.stream->Rows(request_.input, *full_.weights, begin, M, rows_.data());
    if (request_.folded != nullptr && !request_.folded->empty()) {
      const std::vector<float>& scales = *request_.folded;
      for (int64_t m = 0; m < M; ++m) {
        for (int64_t k = 0; k < K_; ++k) rows_[static_cast<size_t>(m * K_ + k)] /= scales[static_cast<size_t>(k)];
      }
    }
    const float* theirs = full_.stream->Hidden(begin);
    const float* ours = stream_.Hidden(begin);
    for (int64_t i = 0; i < M * hidden_; ++i) difference_[static_cast<size_t>(i)] = theirs[i] - ours[i];
  }
  const float* rows() const { return rows_.data(); }
  const float* difference() const { return difference_.data(); }

 private:
  LayerStream& stream_;
  const FullStream& full_;
  const StatisticsRequest& request_;
  int64_t K_, hidden_;
  std::vector<float> rows_, difference_;  // of one chunk
};

std::vector<float> SumOf(const std::vector<float>& a, const std::vector<float>& b) {
  std::vector<float> out(a.size());
  for (size_t i = 0; i < a.size(); ++i) out[i] = a[i] + b[i];
  return out;
}

}  // namespace

absl::StatusOr<InputStatistics> CollectStatistics(LayerStream& stream, const LayerWeights& w, const FullStream& full,
                                                  const StatisticsRequest& request, ThreadPool& threads) {
  const int64_t K = stream.Width(request.input);
  InputSums sums(K, stream.tokens(), threads);
  if (!request.shifts || full.stream == nullptr) {
    GramSum gram(K);
    SAGE_RETURN_IF_ERROR(stream.Visit(request.input, w, [&](const float* x, int64_t M) {
      SAGE_RETURN_IF_ERROR(sums.Add(x, M));
      gram.Add(x, M, threads);
      return absl::OkStatus();
    }));
    InputStatistics out = sums.Take();
    out.gram = gram.Matrix<float>(threads);
    return out;
  }
  const int64_t hidden = request.residual ? stream.Width(LayerInput::kMlp) : 0;
  // The halves meet at a chunk's end.
  const int64_t middle =
      (stream.tokens() / 2 + LayerStream::kChunkRows - 1) / LayerStream::kChunkRows * LayerStream::kChunkRows;
  std::array<HalfSums, 2> halves = {HalfSums(K, hidden), HalfSums(K, hidden)};
  FullRows rows(stream, full, request, hidden);
  int64_t begin = 0;
  SAGE_RETURN_IF_ERROR(stream.Visit(request.input, w, [&](const float* x, int64_t M) {
    SAGE_RETURN_IF_ERROR(sums.Add(x, M));
    rows.Read(begin, M);
    halves[begin < middle ? 0 : 1].Add(rows.rows(), x, rows.difference(), M, threads);
    begin += M;
    return absl::OkStatus();
  }));
  InputStatistics out = sums.Take();
  for (size_t i = 0; i < 2; ++i) out.halves[i] = halves[i].Take(threads);
  out.gram = SumOf(out.halves[0].gram, out.halves[1].gram);
  return out;
}

}  // namespace sage
