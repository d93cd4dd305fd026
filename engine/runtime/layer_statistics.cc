// One pass over an input: magnitudes, Gram matrix, samples, and per half of the tokens the differences to the
// unquantized model.
//
// Hidden states of single tokens can be a hundred times larger than those of all others (the first token of a text, in
// most models). The next norm divides such an error away with the size, but in a plain sum over tokens it would hide
// all others: what is added to the hidden states counts relative to their size.
#include "engine/runtime/layer_statistics.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "engine/base/status.h"

namespace sage {
namespace {

constexpr int64_t kSampleRows = 512;

bool IsAdded(LayerInput input) { return input == LayerInput::kAttended || input == LayerInput::kProduct; }

// Inverse sizes of hidden states [M, hidden], a summand to them (null = none) counted in.
void InverseSizes(const float* hidden, const float* more, int64_t M, int64_t width, float* out) {
  for (int64_t m = 0; m < M; ++m) {
    double sum = 0;
    for (int64_t k = m * width; k < (m + 1) * width; ++k) {
      const double value = static_cast<double>(hidden[k]) + (more == nullptr ? 0.0 : static_cast<double>(more[k]));
      sum += value * value;
    }
    const double size = std::sqrt(sum / static_cast<double>(width));
    out[m] = size > 1e-6 ? static_cast<float>(1.0 / size) : 1.0f;
  }
}

void ScaleRows(const float* rows, const float* factors, int64_t M, int64_t width, float* out) {
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t k = m * width; k < (m + 1) * width; ++k) out[k] = rows[k] * factors[m];
  }
}

// The sums of one half of the tokens; the second half stays unused without the unquantized model.
struct HalfSums {
  HalfSums(int64_t K, int64_t hidden, bool shifts) : gram(K) {
    if (hidden > 0) wanted = std::make_unique<CrossSum>(hidden, K);
    if (shifts) shift = std::make_unique<ShiftSum>(K);
  }
  GramSum gram;
  std::unique_ptr<ShiftSum> shift;
  std::unique_ptr<CrossSum> wanted;
};

class Pass {
 public:
  Pass(LayerStream& stream, const LayerWeights& w, const FullStream& full, const StatisticsRequest& request,
       ThreadPool& threads)
      : stream_(stream),
        w_(w),
        full_(full),
        request_(request),
        threads_(threads),
        K_(stream.Width(request.input)),
        hidden_(stream.Width(LayerInput::kMlp)),
        halves_wanted_(request.halves && full.stream != nullptr),
        tokens_(request.most_tokens > 0 ? std::min(request.most_tokens, stream.tokens()) : stream.tokens()),
        // Odd, so that texts of a length that is a power of two do not show the same places again and again.
        stride_(((tokens_ + kSampleRows - 1) / kSampleRows) | 1),
        middle_((tokens_ / 2 + LayerStream::kChunkRows - 1) / LayerStream::kChunkRows * LayerStream::kChunkRows),
        magnitude_(K_),
        factors_(static_cast<size_t>(LayerStream::kChunkRows)),
        rows_(static_cast<size_t>(LayerStream::kChunkRows * K_)),
        theirs_(static_cast<size_t>(LayerStream::kChunkRows * std::max(K_, hidden_))) {
    const bool added = IsAdded(request.input);
    const int64_t outputs = halves_wanted_ && added ? hidden_ : 0;
    for (int i = 0; i < (halves_wanted_ ? 2 : 1); ++i) sums_.emplace_back(K_, outputs, halves_wanted_ && !added);
  }

  absl::Status Run() {
    const auto visit = [&](const float* x, int64_t M) { return Add(x, M); };
    const LayerStream::VisitRows rows = visit;
    return request_.adds ? stream_.Add(request_.input, w_, &rows) : stream_.Visit(request_.input, w_, rows);
  }

  InputStatistics Take() {
    InputStatistics out = {K_, begin_, {}, magnitude_.Mean(), magnitude_.Max(), std::move(sample_), {}, {}};
    out.gram = sums_[0].gram.Matrix<float>(threads_);
    if (!halves_wanted_) return out;
    for (size_t i = 0; i < 2; ++i) {
      InputStatistics::Half& half = out.halves[i];
      half.gram = i == 0 ? out.gram : sums_[i].gram.Matrix<float>(threads_);
      if (sums_[i].shift != nullptr) half.shift = sums_[i].shift->Matrix<float>(threads_);
      if (sums_[i].wanted != nullptr) half.wanted = sums_[i].wanted->Matrix<float>(threads_);
    }
    for (size_t i = 0; i < out.gram.size(); ++i) out.gram[i] += out.halves[1].gram[i];
    return out;
  }

 private:
  absl::Status Add(const float* x, int64_t M) {
    M = std::min(M, tokens_ - begin_);
    if (M <= 0) return absl::OkStatus();
    SAGE_RETURN_IF_ERROR(magnitude_.Add(x, M, K_, threads_));  // refuses values that are not finite
    HalfSums& sums = sums_[halves_wanted_ && begin_ >= middle_ ? 1 : 0];
    const float* rows = x;
    if (request_.input != LayerInput::kAttention) {
      Weigh(x, M);
      ScaleRows(x, factors_.data(), M, K_, rows_.data());
      rows = rows_.data();
    }
    for (int64_t m = (stride_ - begin_ % stride_) % stride_; m < M; m += stride_) {
      sample_.insert(sample_.end(), rows + m * K_, rows + (m + 1) * K_);
    }
    sums.gram.Add(rows, M, threads_);
    if (sums.wanted != nullptr) {
      ReadWanted(M);
      sums.wanted->Add(theirs_.data(), rows, M, threads_);
    }
    if (sums.shift != nullptr) {
      ReadShifted(M);
      sums.shift->Add(theirs_.data(), rows, M, threads_);
    }
    begin_ += M;
    return absl::OkStatus();
  }

  // The unquantized states are beyond the addition before the quantized ones are.
  void Weigh(const float* x, int64_t M) {
    if (request_.input == LayerInput::kMlp || request_.adds) {
      return InverseSizes(stream_.Hidden(begin_), nullptr, M, hidden_, factors_.data());
    }
    if (halves_wanted_) return InverseSizes(full_.stream->Hidden(begin_), nullptr, M, hidden_, factors_.data());
    stream_.Project(request_.input, w_, x, M, theirs_.data());
    InverseSizes(stream_.Hidden(begin_), theirs_.data(), M, hidden_, factors_.data());
  }

  void ReadWanted(int64_t M) {
    const float* full = full_.stream->Hidden(begin_);
    const float* ours = stream_.Hidden(begin_);
    for (int64_t m = 0; m < M; ++m) {
      const float factor = factors_[static_cast<size_t>(m)];
      for (int64_t k = m * hidden_; k < (m + 1) * hidden_; ++k) {
        theirs_[static_cast<size_t>(k)] = (full[k] - ours[k]) * factor;
      }
    }
  }

  // Rows of the unquantized model as the folded one would have them.
  void ReadShifted(int64_t M) {
    full_.stream->Rows(request_.input, *full_.weights, begin_, M, theirs_.data());
    if (request_.folded != nullptr && !request_.folded->empty()) {
      for (int64_t i = 0; i < M * K_; ++i) {
        theirs_[static_cast<size_t>(i)] /= (*request_.folded)[static_cast<size_t>(i % K_)];
      }
    }
    if (request_.input != LayerInput::kAttention) {
      ScaleRows(theirs_.data(), factors_.data(), M, K_, theirs_.data());
    }
  }

  LayerStream& stream_;
  const LayerWeights& w_;
  const FullStream& full_;
  const StatisticsRequest& request_;
  ThreadPool& threads_;
  const int64_t K_, hidden_;
  const bool halves_wanted_;
  const int64_t tokens_;           // that count
  const int64_t stride_, middle_;  // the halves meet at a chunk's end
  int64_t begin_ = 0;
  InputMagnitude magnitude_;
  std::vector<HalfSums> sums_;
  std::vector<float> sample_;
  std::vector<float> factors_, rows_, theirs_;  // of one chunk
};

}  // namespace

absl::StatusOr<InputStatistics> CollectStatistics(LayerStream& stream, const LayerWeights& w, const FullStream& full,
                                                  const StatisticsRequest& request, ThreadPool& threads) {
  Pass pass(stream, w, full, request, threads);
  SAGE_RETURN_IF_ERROR(pass.Run());
  return pass.Take();
}

}  // namespace sage
