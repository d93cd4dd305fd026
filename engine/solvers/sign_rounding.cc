// The descent: round, multiply by the Gram matrix, keep what is better, step by the signs.
#include "engine/solvers/sign_rounding.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/solvers/dense_algebra.h"

namespace sage {
namespace {

// How far a range may shrink or, where the start had cut it, grow again.
constexpr float kLeastFactor = 0.1f, kMostFactor = 1.25f;
// A start's code is kept by an offset that leaves the value just inside its rounding interval.
constexpr float kInsideStep = 0.49f;

absl::Status Invalid(std::string_view reason, const std::string& message) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason, absl::StrCat("sign rounding: ", message));
}

float Sign(double value) { return value > 0 ? 1.0f : value < 0 ? -1.0f : 0.0f; }

class SignDescent {
 public:
  SignDescent(absl::Span<const float> weight, int64_t N, int64_t K, absl::Span<const float> gram,
              const GridWeight& start, const SignRoundingOptions& options, ThreadPool& threads)
      : weight_(weight),
        gram_(gram),
        start_(start),
        options_(options),
        threads_(threads),
        N_(N),
        K_(K),
        width_(GroupWidth(options.grid, K)),
        G_(K / width_),
        low_(static_cast<float>(MinCode(options.grid.bits))),
        high_(static_cast<float>(MaxCode(options.grid.bits))),
        codes_(start.codes),
        grids_(N * G_),
        shift_(N * K),
        offset_(N * K),
        factors_(2 * N * G_, 1.0f),
        difference_(N * K),
        gradient_(N * K),
        least_(N) {}

  SignRoundingResult Run() {
    SignRoundingResult out;
    out.weight = start_;
    threads_.ParallelFor(N_, 4, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) Begin(n);
    });
    Measure();
    std::vector<char> improved(N_);
    threads_.ParallelFor(N_, 4, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) least_[n] = RowLoss(n);
    });
    for (const double loss : least_) out.start_loss += loss;
    const double count = static_cast<double>(options_.iterations);
    const double rate = options_.rate > 0 ? options_.rate : 1.0 / count;
    const double range_rate = options_.range_rate > 0 ? options_.range_rate : rate;
    for (int i = 0; i < options_.iterations; ++i) {
      const double left = 1.0 - static_cast<double>(i) / count;
      threads_.ParallelFor(N_, 4, [&](int64_t begin, int64_t end) {
        std::vector<double> slopes(2 * G_);
        for (int64_t n = begin; n < end; ++n) {
          Step(n, static_cast<float>(rate * left), static_cast<float>(range_rate * left), slopes);
          Round(n);
        }
      });
      Measure();
      threads_.ParallelFor(N_, 4, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) improved[n] |= Keep(n, out.weight);
      });
    }
    for (const double loss : least_) out.loss += loss;
    out.improved_rows = std::count(improved.begin(), improved.end(), 1);
    return out;
  }

 private:
  int64_t Group(int64_t k) const { return start_.g_idx.empty() ? k / width_ : start_.g_idx[k]; }
  IntegerGrid StartGrid(int64_t at) const { return {start_.scale[at], static_cast<int32_t>(start_.zero[at])}; }
  // The weight's place between codes before its learned offset.
  static float Place(float w, const IntegerGrid& grid) { return w / grid.scale + static_cast<float>(grid.zero); }

  void Begin(int64_t n) {
    for (int64_t g = n * G_; g < (n + 1) * G_; ++g) grids_[g] = StartGrid(g);
    for (int64_t k = 0; k < K_; ++k) {
      const int64_t at = n * K_ + k;
      const IntegerGrid& grid = grids_[n * G_ + Group(k)];
      const float place = Place(weight_[at], grid), code = static_cast<float>(codes_[at]);
      float inside = place;
      if (code > low_) inside = std::max(inside, code - kInsideStep);
      if (code < high_) inside = std::min(inside, code + kInsideStep);
      shift_[at] = inside - place;
      difference_[at] = ValueOf(codes_[at], grid) - weight_[at];
    }
  }

  // The gradient, up to its factor 2.
  void Measure() { MultiplyTransposed(difference_.data(), gram_.data(), N_, K_, K_, gradient_.data(), threads_); }

  double RowLoss(int64_t n) const {
    double sum = 0;
    for (int64_t i = n * K_; i < (n + 1) * K_; ++i) {
      sum += static_cast<double>(difference_[i]) * static_cast<double>(gradient_[i]);
    }
    return sum;
  }

  // Straight through the rounding: inside the range a code follows w / s + offset, outside it follows the range's end.
  void Step(int64_t n, float rate, float range_rate, std::vector<double>& slopes) {
    std::fill(slopes.begin(), slopes.end(), 0.0);
    for (int64_t k = 0; k < K_; ++k) {
      const int64_t at = n * K_ + k, g = Group(k);
      const IntegerGrid& grid = grids_[n * G_ + g];
      const double slope = static_cast<double>(gradient_[at]);
      const float place = Place(weight_[at], grid) + shift_[at] + offset_[at];
      const bool inside = place >= low_ && place <= high_;
      double* both = &slopes[2 * g];
      if (inside) {
        const double by_scale = slope * (static_cast<double>(codes_[at] - grid.zero) -
                                         static_cast<double>(weight_[at]) / static_cast<double>(grid.scale));
        both[0] += by_scale * static_cast<double>(static_cast<float>(grid.zero) - low_);
        both[1] += by_scale * static_cast<double>(high_ - static_cast<float>(grid.zero));
        offset_[at] = std::clamp(offset_[at] - rate * Sign(slope), -0.5f, 0.5f);
      } else {
        // Values of the ends in units of the scale; the steps between them are what by_scale is multiplied with above.
        const double steps = static_cast<double>(high_ - low_);
        both[place < low_ ? 0 : 1] += slope * steps * static_cast<double>(codes_[at] - grid.zero);
      }
    }
    if (!options_.tune_range) return;
    for (int64_t g = 0; g < G_; ++g) {
      float* factor = &factors_[2 * (n * G_ + g)];
      const double* both = &slopes[2 * g];
      if (options_.grid.symmetric) {
        factor[0] = factor[1] = std::clamp(factor[1] - range_rate * Sign(both[0] + both[1]), kLeastFactor, kMostFactor);
      } else {
        factor[0] = std::clamp(factor[0] - range_rate * Sign(both[0]), kLeastFactor, kMostFactor);
        factor[1] = std::clamp(factor[1] - range_rate * Sign(both[1]), kLeastFactor, kMostFactor);
      }
    }
  }

  IntegerGrid FactoredGrid(int64_t at) const {
    const float low_factor = factors_[2 * at], high_factor = factors_[2 * at + 1];
    const IntegerGrid begun = StartGrid(at);
    if (low_factor == 1.0f && high_factor == 1.0f) return begun;  // bit for bit
    const GridSpec& spec = options_.grid;
    IntegerGrid grid;
    if (spec.symmetric) {
      grid.scale = RoundToDType(begun.scale * high_factor, spec.scale_dtype);
    } else {
      const float zero = static_cast<float>(begun.zero);
      grid = GridFromRange(begun.scale * (low_ - zero) * low_factor, begun.scale * (high_ - zero) * high_factor,
                           spec.bits, false, spec.scale_dtype, 0);
    }
    return grid.scale > 0 && std::isfinite(grid.scale) ? grid : begun;
  }

  void Round(int64_t n) {
    for (int64_t g = n * G_; g < (n + 1) * G_; ++g) grids_[g] = FactoredGrid(g);
    for (int64_t k = 0; k < K_; ++k) {
      const int64_t at = n * K_ + k;
      const IntegerGrid& grid = grids_[n * G_ + Group(k)];
      const float place = Place(weight_[at], grid) + shift_[at] + offset_[at];
      codes_[at] = static_cast<int8_t>(RoundHalfEven(std::clamp(place, low_, high_)));
      difference_[at] = ValueOf(codes_[at], grid) - weight_[at];
    }
  }

  bool Keep(int64_t n, GridWeight& best) {
    const double loss = RowLoss(n);
    if (!(loss < least_[n])) return false;
    least_[n] = loss;
    std::copy(codes_.begin() + n * K_, codes_.begin() + (n + 1) * K_, best.codes.begin() + n * K_);
    for (int64_t g = n * G_; g < (n + 1) * G_; ++g) {
      best.scale[g] = grids_[g].scale;
      best.zero[g] = static_cast<float>(grids_[g].zero);
    }
    return true;
  }

  const absl::Span<const float> weight_, gram_;
  const GridWeight& start_;
  const SignRoundingOptions& options_;
  ThreadPool& threads_;
  const int64_t N_, K_, width_, G_;
  const float low_, high_;
  std::vector<int8_t> codes_;       // [N, K]
  std::vector<IntegerGrid> grids_;  // [N, G]
  std::vector<float> shift_;        // [N, K] what makes the start's codes, fixed
  std::vector<float> offset_;       // [N, K] learned
  std::vector<float> factors_;      // [N, G, 2] of the low and the high end of the start's range
  std::vector<float> difference_;   // [N, K] Q - W
  std::vector<float> gradient_;     // [N, K] (Q - W) H
  std::vector<double> least_;       // [N]
};

}  // namespace

absl::StatusOr<SignRoundingResult> SolveSignRounding(absl::Span<const float> weight, int64_t N, int64_t K,
                                                     absl::Span<const float> gram, const GridWeight& start,
                                                     const SignRoundingOptions& options, ThreadPool& threads) {
  SAGE_RETURN_IF_ERROR(CheckGridProblem("sign rounding", weight, N, K, options.grid));
  if (gram.size() != static_cast<size_t>(K * K)) {
    return Invalid("BAD_GRAM_SHAPE",
                   absl::StrCat("the Gram matrix must be [K, K] with K=", K, ", got ", gram.size(), " values"));
  }
  for (const float value : gram) {
    if (!std::isfinite(value)) return Invalid("NON_FINITE_GRAM", absl::StrCat("H must be finite, got ", value));
  }
  if (options.iterations < 1 || options.iterations > 100000 || !(options.rate >= 0 && options.rate <= 1) ||
      !(options.range_rate >= 0 && options.range_rate <= 1)) {
    return Invalid("BAD_SEARCH", absl::StrCat("iterations must be 1..100000 and rates 0..1, got ", options.iterations,
                                              ", ", options.rate, ", ", options.range_rate));
  }
  SAGE_RETURN_IF_ERROR(CheckGridStart("sign rounding", start, N, K, options.grid));
  return SignDescent(weight, N, K, gram, start, options, threads).Run();
}

}  // namespace sage
