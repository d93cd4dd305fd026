// Statistics, candidates and searches of AWQ and SmoothQuant.
#include "engine/solvers/scale_search.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/solvers/dense_algebra.h"

namespace sage {
namespace {

constexpr float kLeastAwqScale = 1e-4f, kLeastSmooth = 1e-5f;
constexpr int kClipSteps = 20, kClipCandidates = 10;
// Of each layer, for the error of a candidate: they settle one number.
constexpr int64_t kScaleTrialRows = 256;
constexpr int kCoarseStep = 3;
constexpr int64_t kClipRows = 256;  // rows of one batch of the clip search: bounds its memory

absl::Status Invalid(const char* who, std::string_view reason, const std::string& message) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason, absl::StrCat(who, ": ", message));
}

absl::Status CheckFinite(const char* who, const char* name, absl::Span<const float> values, int64_t count) {
  if (values.size() != static_cast<size_t>(count)) {
    return Invalid(who, "BAD_STATISTICS", absl::StrCat(name, " must have ", count, " values, got ", values.size()));
  }
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      return Invalid(who, "BAD_STATISTICS", absl::StrCat(name, " must be finite, got ", values[i], " at ", i));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLayers(const char* who, absl::Span<const LayerWeight> layers, int64_t K, const GridSpec& spec) {
  if (layers.empty()) return Invalid(who, "NO_LAYERS", "at least one layer must share the input, got none");
  for (const LayerWeight& layer : layers) SAGE_RETURN_IF_ERROR(CheckGridProblem(who, layer.values, layer.N, K, spec));
  return absl::OkStatus();
}

// Each token's inputs divided by `scales`, then rounded to symmetric codes of its largest value.
std::vector<float> RoundTokens(const float* x, int64_t M, int64_t K, absl::Span<const float> scales, int bits,
                               ThreadPool& threads) {
  std::vector<float> out(M * K);
  const float most = static_cast<float>(MaxCode(bits));
  threads.ParallelFor(M, 4, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      float* row = out.data() + m * K;
      float largest = 1e-5f;
      for (int64_t k = 0; k < K; ++k) {
        row[k] = scales.empty() ? x[m * K + k] : x[m * K + k] / scales[k];
        largest = std::max(largest, std::fabs(row[k]));
      }
      const float step = largest / most;
      for (int64_t k = 0; k < K; ++k) row[k] = static_cast<float>(RoundHalfEven(row[k] / step)) * step;
    }
  });
  return out;
}

double SquaredDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += d * d;
  }
  return sum;
}

std::vector<float> Scaled(absl::Span<const float> weight, int64_t N, int64_t K, absl::Span<const float> scales) {
  std::vector<float> out(weight.begin(), weight.end());
  if (scales.empty()) return out;
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k = 0; k < K; ++k) out[n * K + k] *= scales[k];
  }
  return out;
}

}  // namespace

absl::Status InputMagnitude::Add(const float* x, int64_t M, int64_t stride, ThreadPool& threads) {
  std::vector<double> sum = sum_;
  std::vector<float> max = max_;
  threads.ParallelFor(K_, 64, [&](int64_t begin, int64_t end) {
    for (int64_t m = 0; m < M; ++m) {
      const float* row = x + m * stride;
      for (int64_t k = begin; k < end; ++k) {
        const float size = std::fabs(row[k]);
        sum[k] += static_cast<double>(size);
        max[k] = std::max(max[k], size);
      }
    }
  });
  for (int64_t k = 0; k < K_; ++k) {
    if (!std::isfinite(sum[k])) {
      return Invalid("activation statistics", "NON_FINITE_ACTIVATION",
                     absl::StrCat("activations must be finite, got another value at input ", k));
    }
  }
  sum_ = std::move(sum);
  max_ = std::move(max);
  tokens_ += M;
  return absl::OkStatus();
}

std::vector<float> InputMagnitude::Mean() const {
  std::vector<float> out(K_);
  for (int64_t k = 0; k < K_ && tokens_ > 0; ++k) out[k] = static_cast<float>(sum_[k] / static_cast<double>(tokens_));
  return out;
}

std::vector<float> MeanOfWeights(absl::Span<const LayerWeight> layers, int64_t K, int64_t group_size) {
  const int64_t width = group_size > 0 ? group_size : K;
  std::vector<double> sum(K);
  int64_t rows = 0;
  for (const LayerWeight& layer : layers) {
    rows += layer.N;
    for (int64_t at = 0; at < layer.N * K; at += width) {
      const float* w = layer.values.data() + at;
      float most = 0;
      for (int64_t i = 0; i < width; ++i) most = std::max(most, std::fabs(w[i]));
      for (int64_t i = 0; i < width; ++i) sum[at % K + i] += static_cast<double>(std::fabs(w[i]) / (most + 1e-6f));
    }
  }
  std::vector<float> out(K);
  for (int64_t k = 0; k < K && rows > 0; ++k) out[k] = static_cast<float>(sum[k] / static_cast<double>(rows));
  return out;
}

std::vector<float> MaxOfWeights(absl::Span<const LayerWeight> layers, int64_t K) {
  std::vector<float> out(K);
  for (const LayerWeight& layer : layers) {
    for (int64_t i = 0; i < layer.N * K; ++i) out[i % K] = std::max(out[i % K], std::fabs(layer.values[i]));
  }
  return out;
}

std::vector<float> AwqScales(absl::Span<const float> x_mean, absl::Span<const float> w_mean, double ratio) {
  std::vector<float> out(x_mean.size());
  for (size_t k = 0; k < out.size(); ++k) {
    double scale = std::pow(static_cast<double>(x_mean[k]), ratio);
    if (!w_mean.empty()) scale /= std::pow(static_cast<double>(w_mean[k]), 1.0 - ratio) + 1e-4;
    out[k] = std::max(static_cast<float>(scale), kLeastAwqScale);
  }
  if (out.empty()) return out;
  const auto [least, most] = std::minmax_element(out.begin(), out.end());
  const float middle = std::sqrt(*most * *least);
  for (float& scale : out) {
    scale /= middle;
    if (!std::isfinite(scale) || !(scale > 0)) scale = 1.0f;
  }
  return out;
}

std::vector<float> SmoothScales(absl::Span<const float> x_max, absl::Span<const float> w_max, double alpha) {
  std::vector<float> out(x_max.size());
  for (size_t k = 0; k < out.size(); ++k) {
    const double x = static_cast<double>(std::max(x_max[k], kLeastSmooth));
    const double w = static_cast<double>(std::max(w_max[k], kLeastSmooth));
    out[k] = std::max(static_cast<float>(std::pow(x, alpha) / std::pow(w, 1.0 - alpha)), kLeastSmooth);
  }
  return out;
}

absl::StatusOr<std::vector<float>> FakeQuantize(absl::Span<const float> weight, int64_t N, int64_t K,
                                                absl::Span<const float> scales, const GridSpec& spec,
                                                ThreadPool& threads) {
  SAGE_RETURN_IF_ERROR(CheckGridProblem("fake quantization", weight, N, K, spec));
  if (!scales.empty()) SAGE_RETURN_IF_ERROR(CheckFinite("fake quantization", "scales", scales, K));
  for (const float scale : scales) {
    if (!(scale > 0)) {
      return Invalid("fake quantization", "BAD_STATISTICS", absl::StrCat("scales must be positive, got ", scale));
    }
  }
  SAGE_ASSIGN_OR_RETURN(const GridWeight rounded, RoundToNearest(Scaled(weight, N, K, scales), N, K, spec, threads));
  std::vector<float> out = ValuesOf(rounded, N, K);
  for (int64_t i = 0; i < N * K && !scales.empty(); ++i) out[i] /= scales[i % K];
  return out;
}

double OutputError(absl::Span<const float> a, absl::Span<const float> b, int64_t N, int64_t K, const float* x,
                   int64_t M, ThreadPool& threads) {
  std::vector<float> difference(N * K), y(M * N);
  for (int64_t i = 0; i < N * K; ++i) difference[i] = a[i] - b[i];
  MultiplyTransposed(x, difference.data(), M, N, K, y.data(), threads);
  double sum = 0;
  for (const float v : y) sum += static_cast<double>(v) * static_cast<double>(v);
  return sum;
}

namespace {

// Rows at even strides of every layer, stacked.
std::vector<float> TrialRows(absl::Span<const LayerWeight> layers, int64_t K) {
  std::vector<float> out;
  for (const LayerWeight& layer : layers) {
    const int64_t rows = std::min(layer.N, kScaleTrialRows);
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = layer.values.data() + r * layer.N / rows * K;
      out.insert(out.end(), row, row + K);
    }
  }
  return out;
}

// Candidates of one input, tried on some rows of its layers.
class CandidateSearch {
 public:
  using ErrorOf =
      absl::FunctionRef<double(const std::vector<float>& rows, const std::vector<float>& rounded, int64_t N)>;

  CandidateSearch(absl::Span<const LayerWeight> layers, int64_t K, const GridSpec& spec, int steps, ErrorOf error,
                  ThreadPool& threads)
      : K_(K),
        spec_(spec),
        steps_(steps),
        error_(error),
        threads_(threads),
        rows_(TrialRows(layers, K)),
        w_mean_(MeanOfWeights(layers, K, spec.group_size)) {
    best_.scales.assign(K, 1.0f);
  }

  absl::Status TryNone() {
    SAGE_ASSIGN_OR_RETURN(best_.identity_error, Measure({}));
    best_.error = best_.identity_error;
    return absl::OkStatus();
  }

  void TryCoarsely(absl::Span<const float> magnitude, bool duo) {
    for (int i = 0; i < steps_; i += kCoarseStep) Try(magnitude, duo, i);
  }

  AwqChoice Finish() {
    if (best_.identity) return best_;
    const int middle = static_cast<int>(std::lround(best_.ratio * steps_));
    for (int i = middle - kCoarseStep + 1; i < middle + kCoarseStep; ++i) {
      if (i != middle) Try(magnitude_, best_.duo, i);
    }
    return best_;
  }

 private:
  absl::StatusOr<double> Measure(absl::Span<const float> scales) {
    const int64_t N = static_cast<int64_t>(rows_.size()) / K_;
    SAGE_ASSIGN_OR_RETURN(const std::vector<float> q, FakeQuantize(rows_, N, K_, scales, spec_, threads_));
    return error_(rows_, q, N);
  }

  void Try(absl::Span<const float> magnitude, bool duo, int i) {
    if (i < (duo ? 0 : 1) || i >= steps_) return;  // without duo scaling ratio 0 is plain rounding
    const double ratio = static_cast<double>(i) / static_cast<double>(steps_);
    std::vector<float> scales =
        AwqScales(magnitude, duo ? absl::MakeConstSpan(w_mean_) : absl::Span<const float>(), ratio);
    const absl::StatusOr<double> error = Measure(scales);
    // A candidate may push a range beyond the scale dtype; that only rules the candidate out.
    if (!error.ok() || !(*error < best_.error)) return;
    best_ = {std::move(scales), ratio, duo, false, *error, best_.identity_error};
    magnitude_ = magnitude;
  }

  const int64_t K_;
  const GridSpec& spec_;
  const int steps_;
  const ErrorOf error_;
  ThreadPool& threads_;
  const std::vector<float> rows_, w_mean_;
  AwqChoice best_;
  absl::Span<const float> magnitude_;  // of the best
};

}  // namespace

absl::StatusOr<AwqChoice> SearchAwqScales(absl::Span<const LayerWeight> layers, int64_t K,
                                          absl::Span<const float> x_mean, absl::Span<const float> gram,
                                          const GridSpec& spec, int steps, AwqCandidates candidates,
                                          ThreadPool& threads) {
  SAGE_RETURN_IF_ERROR(CheckLayers("awq", layers, K, spec));
  SAGE_RETURN_IF_ERROR(CheckFinite("awq", "the mean of |x|", x_mean, K));
  SAGE_RETURN_IF_ERROR(CheckFinite("awq", "the Gram matrix", gram, K * K));
  const auto error = [&](const std::vector<float>& rows, const std::vector<float>& rounded, int64_t N) {
    return GramError(rows, rounded, gram, N, K, threads);
  };
  CandidateSearch search(layers, K, spec, steps, error, threads);
  SAGE_RETURN_IF_ERROR(search.TryNone());
  if (candidates != AwqCandidates::kActivations) search.TryCoarsely(x_mean, true);
  if (candidates != AwqCandidates::kDuo) search.TryCoarsely(x_mean, false);
  return search.Finish();
}

absl::StatusOr<AwqChoice> SearchCompensatedScales(absl::Span<const LayerWeight> layers, int64_t K,
                                                  absl::Span<const float> x_mean, absl::Span<const float> energy,
                                                  const GridSpec& spec, int steps, ThreadPool& threads) {
  SAGE_RETURN_IF_ERROR(CheckLayers("awq", layers, K, spec));
  SAGE_RETURN_IF_ERROR(CheckFinite("awq", "the mean of |x|", x_mean, K));
  SAGE_RETURN_IF_ERROR(CheckFinite("awq", "the remaining energy", energy, K));
  const auto error = [&](const std::vector<float>& rows, const std::vector<float>& rounded, int64_t N) {
    std::vector<double> of_row(N);
    threads.ParallelFor(N, 8, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        double sum = 0;
        for (int64_t k = 0; k < K; ++k) {
          const double lost = static_cast<double>(rows[n * K + k]) - static_cast<double>(rounded[n * K + k]);
          sum += lost * lost * static_cast<double>(energy[k]);
        }
        of_row[n] = sum;
      }
    });
    return std::accumulate(of_row.begin(), of_row.end(), 0.0);
  };
  std::vector<float> root(K);
  for (int64_t k = 0; k < K; ++k) root[k] = std::sqrt(energy[k]);
  CandidateSearch search(layers, K, spec, steps, error, threads);
  SAGE_RETURN_IF_ERROR(search.TryNone());
  for (const bool duo : {true, false}) {
    search.TryCoarsely(x_mean, duo);
    search.TryCoarsely(root, duo);
  }
  return search.Finish();
}

absl::StatusOr<SmoothChoice> SearchSmoothAlpha(absl::Span<const LayerWeight> layers, int64_t K,
                                               absl::Span<const float> x_max, const float* x, int64_t M,
                                               const GridSpec& spec, int activation_bits,
                                               absl::Span<const double> alphas, ThreadPool& threads) {
  SAGE_RETURN_IF_ERROR(CheckLayers("smoothquant", layers, K, spec));
  SAGE_RETURN_IF_ERROR(CheckFinite("smoothquant", "the largest |x|", x_max, K));
  SAGE_RETURN_IF_ERROR(CheckFinite("smoothquant", "sample inputs", absl::MakeConstSpan(x, M * K), M * K));
  if (M < 1 || alphas.empty() || activation_bits < 2 || activation_bits > 16) {
    return Invalid("smoothquant", "BAD_SEARCH",
                   absl::StrCat("tokens and alphas must be given and activation bits be 2..16, got ", M, " tokens, ",
                                alphas.size(), " alphas, ", activation_bits, " bits"));
  }
  std::vector<std::vector<float>> targets;
  for (const LayerWeight& layer : layers) {
    targets.emplace_back(M * layer.N);
    MultiplyTransposed(x, layer.values.data(), M, layer.N, K, targets.back().data(), threads);
  }
  const auto error_of = [&](absl::Span<const float> scales) -> absl::StatusOr<double> {
    const std::vector<float> tokens = RoundTokens(x, M, K, scales, activation_bits, threads);
    double sum = 0;
    for (size_t l = 0; l < layers.size(); ++l) {
      const int64_t N = layers[l].N;
      SAGE_ASSIGN_OR_RETURN(const GridWeight rounded,
                            RoundToNearest(Scaled(layers[l].values, N, K, scales), N, K, spec, threads));
      std::vector<float> y(M * N);
      MultiplyTransposed(tokens.data(), ValuesOf(rounded, N, K).data(), M, N, K, y.data(), threads);
      sum += SquaredDifference(y, targets[l]);
    }
    return sum;
  };
  SmoothChoice best;
  SAGE_ASSIGN_OR_RETURN(best.identity_error, error_of({}));
  const std::vector<float> w_max = MaxOfWeights(layers, K);
  for (const double alpha : alphas) {
    if (!(alpha >= 0 && alpha <= 1)) {
      return Invalid("smoothquant", "BAD_ALPHA", absl::StrCat("alpha must be 0..1, got ", alpha));
    }
    std::vector<float> scales = SmoothScales(x_max, w_max, alpha);
    SAGE_ASSIGN_OR_RETURN(const double error, error_of(scales));
    if (!best.scales.empty() && !(error < best.error)) continue;
    best.scales = std::move(scales);
    best.alpha = alpha;
    best.error = error;
  }
  return best;
}

namespace {

// A batch of rows in one group: differences of all candidates, and their errors through one product with H_gg.
class ClipBatch {
 public:
  ClipBatch(const GridSpec& spec, int64_t width, int64_t rows)
      : spec_(spec), width_(width), difference_(rows * kClipCandidates * width), product_(difference_.size()) {}

  // w: rows `stride` apart; gram: the group's block, rows `gram_stride` apart. Writes limit, error and whole_error per
  // row, `out_stride` apart for the limit.
  bool Run(const float* w, int64_t stride, int64_t rows, const float* gram, int64_t gram_stride, float* limit,
           int64_t limit_stride, double* error, double* whole_error, ThreadPool& threads) {
    std::vector<char> fits(rows * kClipCandidates);
    threads.ParallelFor(rows, 4, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        for (int t = 0; t < kClipCandidates; ++t) fits[r * kClipCandidates + t] = Difference(w + r * stride, r, t);
      }
    });
    GemmSpec<float> product;
    product.rows = rows * kClipCandidates;
    product.columns = product.depth = width_;
    product.a = {difference_.data(), width_, 1};
    product.b = {gram, gram_stride, 1};
    Gemm(product, product_.data(), width_, threads);
    for (int64_t r = 0; r < rows; ++r) {
      int best = -1;
      double least = 0, whole = 0;
      for (int t = 0; t < kClipCandidates; ++t) {
        if (!fits[r * kClipCandidates + t]) continue;
        double sum = 0;
        const int64_t at = (r * kClipCandidates + t) * width_;
        for (int64_t i = at; i < at + width_; ++i) {
          sum += static_cast<double>(difference_[i]) * static_cast<double>(product_[i]);
        }
        if (t == 0) whole = sum;
        if (best < 0 || sum < least) {
          best = t;
          least = sum;
        }
      }
      if (best < 0) return false;
      limit[r * limit_stride] = Limit(w + r * stride, best);
      *error += least;
      *whole_error += whole;
    }
    return true;
  }

 private:
  float Limit(const float* w, int t) const {
    float most = 0;
    for (int64_t i = 0; i < width_; ++i) most = std::max(most, std::fabs(w[i]));
    if (spec_.clip > 0) most *= static_cast<float>(1.0 - spec_.clip);
    return most * (1.0f - static_cast<float>(t) / static_cast<float>(kClipSteps));
  }

  bool Difference(const float* w, int64_t row, int t) {
    const float limit = Limit(w, t);
    float low = 0, high = 0;
    for (int64_t i = 0; i < width_; ++i) {
      low = std::min(low, w[i]);
      high = std::max(high, w[i]);
    }
    const IntegerGrid grid =
        GridFromRange(std::max(low, -limit), std::min(high, limit), spec_.bits, spec_.symmetric, spec_.scale_dtype, 0);
    float* out = difference_.data() + (row * kClipCandidates + t) * width_;
    if (!std::isfinite(grid.scale)) {
      std::fill(out, out + width_, 0.0f);
      return false;
    }
    for (int64_t i = 0; i < width_; ++i) {
      out[i] = ValueOf(CodeOf(std::clamp(w[i], -limit, limit), grid, spec_.bits), grid) - w[i];
    }
    return true;
  }

  const GridSpec& spec_;
  const int64_t width_;
  std::vector<float> difference_, product_;
};

}  // namespace

absl::StatusOr<ClipChoice> SearchClip(absl::Span<const float> weight, int64_t N, int64_t K,
                                      absl::Span<const float> gram, const GridSpec& spec, ThreadPool& threads) {
  SAGE_RETURN_IF_ERROR(CheckGridProblem("clip search", weight, N, K, spec));
  SAGE_RETURN_IF_ERROR(CheckFinite("clip search", "the Gram matrix", gram, K * K));
  const int64_t width = GroupWidth(spec, K), G = K / width;
  ClipChoice out;
  out.limit.resize(N * G);
  ClipBatch batch(spec, width, std::min(N, kClipRows));
  for (int64_t g = 0; g < G; ++g) {
    for (int64_t n = 0; n < N; n += kClipRows) {
      if (!batch.Run(weight.data() + n * K + g * width, K, std::min(kClipRows, N - n),
                     gram.data() + g * width * (K + 1), K, out.limit.data() + n * G + g, G, &out.error,
                     &out.whole_error, threads)) {
        return ScaleOverflow("clip search", n, g, spec);
      }
    }
  }
  return out;
}

void ClipWeights(float* weight, int64_t N, int64_t K, absl::Span<const float> limit) {
  const int64_t G = static_cast<int64_t>(limit.size()) / N, width = K / G;
  for (int64_t i = 0; i < N * K; ++i) {
    const float most = limit[i / width];
    weight[i] = std::clamp(weight[i], -most, most);
  }
}

}  // namespace sage
