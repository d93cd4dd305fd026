// Least squares through the triangular factor, and its check across halves.
#include "engine/solvers/output_target.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/solvers/dense_algebra.h"
#include "engine/solvers/triangular_factor.h"

namespace sage {
namespace {

absl::Status CheckFinite(const char* name, absl::Span<const float> values, int64_t count) {
  if (values.size() != static_cast<size_t>(count)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_TARGET_SHAPE",
                     absl::StrCat("output target: ", name, " must have ", count, " values, got ", values.size()));
  }
  for (const float value : values) {
    if (!std::isfinite(value)) {
      return MakeError(absl::StatusCode::kInvalidArgument, "NON_FINITE_TARGET",
                       absl::StrCat("output target: ", name, " must be finite, got ", value));
    }
  }
  return absl::OkStatus();
}

// Rows of a part that decide on its strength and damping.
constexpr int64_t kTrialRows = 256;

// (H + damp * mean)^-1 = U^T U, or nothing when H cannot be factored.
class Inverse {
 public:
  Inverse(absl::Span<const float> gram, int64_t K, double damp, ThreadPool& threads)
      : gram_(gram), K_(K), u_(K * K), threads_(threads) {
    double mean = 0;
    int64_t active = 0;
    for (int64_t k = 0; k < K; ++k) {
      const double value = static_cast<double>(gram[k * K + k]);
      mean += value;
      active += value > 0 ? 1 : 0;
    }
    if (active == 0) return;
    mean /= static_cast<double>(active);
    AlignedBuffer<float> h(K * K);
    for (const double share : {damp, std::min(1.0, 10 * damp), 1.0}) {
      std::copy(gram.begin(), gram.end(), h.data());
      for (int64_t k = 0; k < K; ++k) {
        float& pivot = h.data()[k * K + k];
        pivot = static_cast<float>((pivot > 0 ? static_cast<double>(pivot) : mean) + share * mean);
      }
      usable_ = FactorUpper(h.data(), K, u_.data(), 0.25 * share * mean, threads) < 0;
      if (usable_) return;
    }
  }

  // E (H + damp * mean)^-1 for E [N, K]; empty when there is none.
  std::vector<float> Correct(absl::Span<const float> cross, int64_t N) const {
    if (!usable_) return {};
    std::vector<float> part(N * K_), out(N * K_);
    GemmSpec<float> spec;
    spec.rows = N;
    spec.columns = spec.depth = K_;
    spec.a = {cross.data(), K_, 1};
    spec.b = {u_.data(), 1, K_};
    spec.zeros = KnownZeros::kRightLower;
    Gemm(spec, part.data(), K_, threads_);
    spec.a = {part.data(), K_, 1};
    spec.b = {u_.data(), K_, 1};
    spec.zeros = KnownZeros::kRightUpper;
    Gemm(spec, out.data(), K_, threads_);
    for (int64_t i = 0; i < N * K_; ++i) {
      if (!(gram_[i % K_ * (K_ + 1)] > 0)) out[i] = 0;
      if (!std::isfinite(out[i])) return {};
    }
    return out;
  }

 private:
  absl::Span<const float> gram_;
  const int64_t K_;
  AlignedBuffer<float> u_;
  bool usable_ = false;
  ThreadPool& threads_;
};

struct Agreement {
  double gain = 0, cost = 0;
};

// Rows of one layer of the stack.
struct Part {
  int64_t begin = 0, rows = 0;              // in the stack
  int64_t trial_begin = 0, trial_rows = 0;  // in the sample
};

class Target {
 public:
  Target(absl::Span<const int64_t> parts, int64_t K, const TargetSums& first, const TargetSums& second,
         ThreadPool& threads)
      : K_(K), sums_{first, second}, threads_(threads) {
    for (const int64_t rows : parts) {
      parts_.push_back({N_, rows, trial_rows_, std::min(rows, kTrialRows)});
      N_ += rows;
      trial_rows_ += parts_.back().trial_rows;
    }
    for (size_t i = 0; i < 2; ++i) {
      for (const Part& part : parts_) {
        for (int64_t r = 0; r < part.trial_rows; ++r) {
          const float* row = sums_[i].cross.data() + (part.begin + r * part.rows / part.trial_rows) * K_;
          trial_[i].insert(trial_[i].end(), row, row + K_);
        }
      }
    }
  }

  void Choose(double damp, TargetWeight& out, std::vector<double>& most) {
    std::vector<Agreement> found(parts_.size());
    for (size_t i = 0; i < 2; ++i) {
      const std::vector<float> d = Inverse(sums_[i].gram, K_, damp, threads_).Correct(trial_[i], trial_rows_);
      if (d.empty()) return;
      Try(d, 1 - i, found);
    }
    for (size_t p = 0; p < parts_.size(); ++p) {
      const auto [gain, cost] = found[p];
      if (!(cost > 0) || !std::isfinite(cost) || !(gain > 0)) continue;
      const double strength = std::min(gain / cost, 1.0), taken = strength * (2 * gain - strength * cost);
      if (!(taken > most[p])) continue;
      most[p] = taken;
      out.strength[p] = strength;
      out.damp[p] = damp;
    }
  }

  // Adds the corrections of the parts that chose `damp`.
  void Apply(double damp, TargetWeight& out) const {
    std::vector<float> gram, cross;
    for (size_t p = 0; p < parts_.size(); ++p) {
      if (out.damp[p] != damp || out.strength[p] == 0.0) continue;
      for (int64_t i = parts_[p].begin * K_; i < (parts_[p].begin + parts_[p].rows) * K_; ++i) {
        cross.push_back(sums_[0].cross[i] + sums_[1].cross[i]);
      }
    }
    if (cross.empty()) return;
    gram.assign(sums_[0].gram.begin(), sums_[0].gram.end());
    for (int64_t i = 0; i < K_ * K_; ++i) gram[i] += sums_[1].gram[i];
    const std::vector<float> d =
        Inverse(gram, K_, damp, threads_).Correct(cross, static_cast<int64_t>(cross.size()) / K_);
    const float* from = d.data();
    for (size_t p = 0; p < parts_.size(); ++p) {
      if (out.damp[p] != damp || out.strength[p] == 0.0) continue;
      if (d.empty()) {
        out.strength[p] = 0;
        continue;
      }
      for (int64_t i = parts_[p].begin * K_; i < (parts_[p].begin + parts_[p].rows) * K_; ++i) {
        out.weight[i] += static_cast<float>(out.strength[p]) * *from++;
      }
    }
  }

 private:
  // The correction d of other tokens takes 2 f gain - f^2 cost from the squared error of `half`, for a factor f.
  void Try(const std::vector<float>& d, size_t half, std::vector<Agreement>& out) const {
    std::vector<float> product(d.size());
    MultiplyTransposed(d.data(), sums_[half].gram.data(), trial_rows_, K_, K_, product.data(), threads_);
    for (size_t p = 0; p < parts_.size(); ++p) {
      const int64_t begin = parts_[p].trial_begin * K_, end = begin + parts_[p].trial_rows * K_;
      for (int64_t i = begin; i < end; ++i) {
        out[p].gain += static_cast<double>(d[i]) * static_cast<double>(trial_[half][i]);
        out[p].cost += static_cast<double>(d[i]) * static_cast<double>(product[i]);
      }
    }
  }

  const int64_t K_;
  const TargetSums sums_[2];
  ThreadPool& threads_;
  int64_t N_ = 0, trial_rows_ = 0;
  std::vector<Part> parts_;
  std::vector<float> trial_[2];  // [trial rows, K] of the cross sums
};

}  // namespace

absl::StatusOr<TargetWeight> SolveOutputTarget(absl::Span<const float> weight, absl::Span<const int64_t> parts,
                                               int64_t K, const TargetSums& first, const TargetSums& second,
                                               absl::Span<const double> damps, ThreadPool& threads) {
  int64_t N = 0;
  for (const int64_t rows : parts) {
    if (rows < 1) {
      return MakeError(absl::StatusCode::kInvalidArgument, "BAD_TARGET_SHAPE",
                       absl::StrCat("output target: parts must have at least one row, got ", rows));
    }
    N += rows;
  }
  SAGE_RETURN_IF_ERROR(CheckFinite("the weight", weight, N * K));
  for (const TargetSums* sums : {&first, &second}) {
    SAGE_RETURN_IF_ERROR(CheckFinite("the Gram matrix", sums->gram, K * K));
    SAGE_RETURN_IF_ERROR(CheckFinite("the cross sums", sums->cross, N * K));
  }
  TargetWeight out;
  out.weight.assign(weight.begin(), weight.end());
  out.strength.assign(parts.size(), 0.0);
  out.damp.assign(parts.size(), 0.0);
  for (const double damp : damps) {
    if (damp > 0 && damp <= 1) continue;
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_DAMP",
                     absl::StrCat("output target: damp must be in (0, 1], got ", damp));
  }
  Target target(parts, K, first, second, threads);
  std::vector<double> most(parts.size());
  for (const double damp : damps) target.Choose(damp, out, most);
  for (const double damp : damps) target.Apply(damp, out);
  return out;
}

}  // namespace sage
