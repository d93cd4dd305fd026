// Sweeps over codes and least-squares scales, rows in blocks.
#include "engine/solvers/grid_descent.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/solvers/dense_algebra.h"
#include "engine/solvers/grid_kernels.h"

namespace sage {
namespace {

constexpr int64_t kRowsAtOnce = 256;  // rows that are worked on together: bounds the memory
// Groups of a row whose scales are fitted together, by a factorisation a row: more would take longer than all else.
constexpr int64_t kMostFitted = 1024;
constexpr int64_t kMostProducts = int64_t{1} << 26;  // of groups with groups that are held at once, 512 MiB
// Another round is not worth its products when fewer than one code of this many has moved in the last.
constexpr int64_t kLeastMoved = 500;
// A least-squares scale further than this from the one before it says that the row's problem is ill-posed.
constexpr double kLeastRatio = 0.25, kMostRatio = 4.0;

absl::Status DescentError(std::string_view reason, const std::string& message) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason, absl::StrCat("grid descent: ", message));
}

// Solves a x = b for a symmetric positive definite [n, n] in place; false when it is not.
bool SolveCholesky(std::vector<double>& a, std::vector<double>& b, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = j; i < n; ++i) {
      double sum = a[i * n + j];
      for (int64_t k = 0; k < j; ++k) sum -= a[i * n + k] * a[j * n + k];
      if (i == j) {
        if (!(sum > 0)) return false;
        a[j * n + j] = std::sqrt(sum);
      } else {
        a[i * n + j] = sum / a[j * n + j];
      }
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < i; ++k) b[i] -= a[i * n + k] * b[k];
    b[i] /= a[i * n + i];
  }
  for (int64_t i = n - 1; i >= 0; --i) {
    for (int64_t k = i + 1; k < n; ++k) b[i] -= a[k * n + i] * b[k];
    b[i] /= a[i * n + i];
  }
  return true;
}

class GridDescent {
 public:
  GridDescent(absl::Span<const float> weight, int64_t N, int64_t K, absl::Span<const float> gram,
              const GridDescentOptions& options, ThreadPool& threads, GridDescentResult& out)
      : weight_(weight),
        N_(N),
        K_(K),
        width_(GroupWidth(options.grid, K)),
        G_(K / width_),
        options_(options),
        fits_scales_(options.tune_scales && G_ <= kMostFitted),
        threads_(threads),
        out_(out),
        gram_(gram.begin(), gram.end()),
        order_(K),
        sorted_(K) {
    double mean = 0;
    for (int64_t k = 0; k < K_; ++k) mean += static_cast<double>(gram_[k * K_ + k]) / static_cast<double>(K_);
    for (int64_t k = 0; k < K_; ++k) gram_[k * K_ + k] += static_cast<float>(options.damp * mean);
    // Inputs with the most energy first: they find the others still free.
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int64_t a, int64_t b) { return gram_[a * K_ + a] > gram_[b * K_ + b]; });
    places_.resize(K_);
    energy_.assign((K_ + kGridLanes - 1) / kGridLanes * kGridLanes, 0.0f);
    ordered_gram_.resize(K_ * K_);
    for (int64_t i = 0; i < K_; ++i) {
      places_[i] = static_cast<int32_t>(Group(order_[i]));
      energy_[i] = gram_[order_[i] * K_ + order_[i]];
    }
    threads_.ParallelFor(K_, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = 0; j < K_; ++j) ordered_gram_[i * K_ + j] = gram_[order_[i] * K_ + order_[j]];
      }
    });
    std::iota(sorted_.begin(), sorted_.end(), 0);
    if (out_.weight.g_idx.empty() || !fits_scales_) return;
    std::stable_sort(sorted_.begin(), sorted_.end(), [&](int64_t a, int64_t b) { return Group(a) < Group(b); });
    sorted_gram_.resize(K_ * K_);
    for (int64_t i = 0; i < K_ * K_; ++i) sorted_gram_[i] = gram_[sorted_[i / K_] * K_ + sorted_[i % K_]];
  }

  void Run() {
    std::vector<double> start(N_), end(N_);
    std::vector<int64_t> moved(N_);
    const int64_t most = fits_scales_ ? std::clamp(kMostProducts / (G_ * G_), int64_t{1}, kRowsAtOnce) : kRowsAtOnce;
    for (int64_t begin = 0; begin < N_; begin += most) {
      const int64_t rows = std::min(most, N_ - begin);
      difference_.resize(rows * K_);
      gradient_.resize(rows * K_);
      if (fits_scales_) FindWanted(begin, rows);
      Measure(begin, rows);
      StoreLosses(begin, rows, start);
      for (int round = 0; round < options_.rounds; ++round) {
        // Scales first: codes that moved to make up for a wrong scale would hold it there.
        if (fits_scales_) {
          FitScales(begin, rows);
          Measure(begin, rows);
        } else if (round > 0) {
          Measure(begin, rows);
        }
        std::vector<int64_t> now(rows);
        threads_.ParallelFor(rows, 1, [&](int64_t first, int64_t last) {
          OrderedRow row(energy_.size());
          for (int64_t r = first; r < last; ++r) now[r] = SweepRow(begin + r, r, row);
        });
        int64_t all = 0;
        for (int64_t r = 0; r < rows; ++r) {
          moved[begin + r] += now[r];
          all += now[r];
        }
        if (all * kLeastMoved < rows * K_) break;
      }
      if (fits_scales_) FitScales(begin, rows);
      Measure(begin, rows);
      StoreLosses(begin, rows, end);
    }
    for (int64_t n = 0; n < N_; ++n) {
      out_.start_loss += start[n];
      out_.loss += end[n];
      out_.moved_codes += moved[n];
    }
  }

 private:
  GridWeight& current() { return out_.weight; }
  int64_t Group(int64_t k) const { return out_.weight.g_idx.empty() ? k / width_ : out_.weight.g_idx[k]; }
  IntegerGrid Grid(int64_t n, int64_t g) const {
    return {out_.weight.scale[n * G_ + g], static_cast<int32_t>(out_.weight.zero[n * G_ + g])};
  }

  // Q - W and its product with H.
  void Measure(int64_t begin, int64_t rows) {
    threads_.ParallelFor(rows, 4, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        const int64_t n = begin + r;
        for (int64_t k = 0; k < K_; ++k) {
          difference_[r * K_ + k] = ValueOf(out_.weight.codes[n * K_ + k], Grid(n, Group(k))) - weight_[n * K_ + k];
        }
      }
    });
    MultiplyTransposed(difference_.data(), gram_.data(), rows, K_, K_, gradient_.data(), threads_);
  }

  void StoreLosses(int64_t begin, int64_t rows, std::vector<double>& losses) const {
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0;
      for (int64_t i = r * K_; i < (r + 1) * K_; ++i) {
        sum += static_cast<double>(difference_[i]) * static_cast<double>(gradient_[i]);
      }
      losses[begin + r] = sum;
    }
  }

  // What a row's codes know of themselves, in the order in which they are asked, padded.
  struct OrderedRow {
    explicit OrderedRow(size_t size) : value(size), scale(size, 1.0f), zero(size), gradient(size) {}
    std::vector<float> value, scale, zero, gradient;
  };

  // Moves codes until none wants to; an input without energy keeps its own.
  int64_t SweepRow(int64_t n, int64_t r, OrderedRow& row) {
    int8_t* codes = current().codes.data() + n * K_;
    for (int64_t i = 0; i < K_; ++i) {
      const int64_t k = order_[i], group = n * G_ + places_[i];
      row.scale[i] = out_.weight.scale[group];
      row.zero[i] = out_.weight.zero[group];
      row.value[i] = (static_cast<float>(codes[k]) - row.zero[i]) * row.scale[i];
      row.gradient[i] = gradient_[r * K_ + k];
    }
    const CodeRow view = {row.value.data(), row.scale.data(), row.zero.data(), energy_.data(), row.gradient.data()};
    int64_t all = 0;
    for (int sweep = 0; sweep < options_.sweeps; ++sweep) {
      int64_t moved = 0;
      for (int64_t i = -1;;) {
        int8_t code = 0;
        i = grid_kernels_.next_move(view, i + 1, K_, options_.grid.bits, &code);
        if (i == K_) break;
        const float value = (static_cast<float>(code) - row.zero[i]) * row.scale[i], step = value - row.value[i];
        codes[order_[i]] = code;
        row.value[i] = value;
        kernels_.add_scaled(K_, step, ordered_gram_.data() + i * K_, row.gradient.data());
        ++moved;
      }
      all += moved;
      if (moved == 0) break;
    }
    return all;
  }

  // For every row the scales s that make sum_g s_g c_g nearest to w under H; kept where the stored ones are better.
  void FitScales(int64_t begin, int64_t rows) {
    std::vector<double> a(rows * G_ * G_), b(rows * G_);
    std::vector<float> levels(rows * K_), product(rows * K_);  // inputs group by group
    threads_.ParallelFor(rows, 4, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        for (int64_t i = 0; i < K_; ++i) levels[r * K_ + i] = Level(begin + r, sorted_[i], i / width_);
      }
    });
    const float* gram = sorted_gram_.empty() ? gram_.data() : sorted_gram_.data();
    for (int64_t g = 0; g < G_; ++g) {
      const int64_t from = g * width_;
      GemmSpec<float> spec;  // the groups before have their sums with this one already
      spec.rows = rows;
      spec.columns = K_ - from;
      spec.depth = width_;
      spec.a = {levels.data() + from, K_, 1};
      spec.b = {gram + from * K_ + from, K_, 1};
      Gemm(spec, product.data() + from, K_, threads_);
      threads_.ParallelFor(rows, 4, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; ++r) {
          const float* level = levels.data() + r * K_;
          for (int64_t h = g; h < G_; ++h) {
            a[(r * G_ + g) * G_ + h] = a[(r * G_ + h) * G_ + g] =
                Dot(product.data() + r * K_ + h * width_, level + h * width_, width_);
          }
          b[r * G_ + g] = Dot(wanted_.data() + r * K_ + from, level + from, width_);
        }
      });
    }
    threads_.ParallelFor(rows, 4, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) FitRow(begin + r, a.data() + r * G_ * G_, b.data() + r * G_);
    });
  }

  // w H of the block's rows, group by group: what the levels are fitted to.
  void FindWanted(int64_t begin, int64_t rows) {
    wanted_.resize(rows * K_);
    std::vector<float> product(rows * K_);
    MultiplyTransposed(weight_.data() + begin * K_, gram_.data(), rows, K_, K_, product.data(), threads_);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < K_; ++i) wanted_[r * K_ + i] = product[r * K_ + sorted_[i]];
    }
  }

  // In sixteen chains, for vectors.
  static double Dot(const float* x, const float* y, int64_t count) {
    float sums[16] = {};
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
      for (int64_t lane = 0; lane < 16; ++lane) sums[lane] += x[i + lane] * y[i + lane];
    }
    double out = 0;
    for (; i < count; ++i) out += static_cast<double>(x[i]) * static_cast<double>(y[i]);
    for (const float sum : sums) out += static_cast<double>(sum);
    return out;
  }

  // A code's distance from the zero point.
  float Level(int64_t n, int64_t k, int64_t g) const {
    return static_cast<float>(out_.weight.codes[n * K_ + k]) - out_.weight.zero[n * G_ + g];
  }

  void FitRow(int64_t n, const double* a, const double* b) {
    float* scale = current().scale.data() + n * G_;
    std::vector<double> matrix(a, a + G_ * G_), solved(b, b + G_);
    double trace = 0;
    for (int64_t g = 0; g < G_; ++g) trace += a[g * G_ + g] / static_cast<double>(G_);
    if (!(trace > 0)) return;
    // A small pull towards the present scales keeps groups whose codes are all at the zero point where they are.
    const double pull = 1e-6 * trace;
    for (int64_t g = 0; g < G_; ++g) {
      for (int64_t h = 0; h < g; ++h) matrix[g * G_ + h] = 0.5 * (a[g * G_ + h] + a[h * G_ + g]);
      matrix[g * G_ + g] += pull;
      solved[g] += pull * static_cast<double>(scale[g]);
    }
    if (!SolveCholesky(matrix, solved, G_)) return;
    std::vector<float> fitted(G_);
    for (int64_t g = 0; g < G_; ++g) {
      const double old = static_cast<double>(scale[g]);
      if (!(solved[g] > kLeastRatio * old && solved[g] < kMostRatio * old)) return;
      fitted[g] = RoundToDType(static_cast<float>(solved[g]), options_.grid.scale_dtype);
      if (!(fitted[g] > 0) || !std::isfinite(fitted[g])) return;
    }
    if (Loss(a, b, fitted.data()) < Loss(a, b, scale)) std::copy(fitted.begin(), fitted.end(), scale);
  }

  // Without the constant w H w^T.
  double Loss(const double* a, const double* b, const float* scale) const {
    double sum = 0;
    for (int64_t g = 0; g < G_; ++g) {
      double row = -2.0 * b[g];
      for (int64_t h = 0; h < G_; ++h) row += a[g * G_ + h] * static_cast<double>(scale[h]);
      sum += row * static_cast<double>(scale[g]);
    }
    return sum;
  }

  const absl::Span<const float> weight_;
  const int64_t N_, K_, width_, G_;
  const GridDescentOptions& options_;
  const bool fits_scales_;
  ThreadPool& threads_;
  GridDescentResult& out_;
  const GemmKernels<float>& kernels_ = KernelsOf<float>(HostGemmTier());
  std::vector<float> gram_;  // [K, K] damped
  const GridKernels& grid_kernels_ = HostGridKernels();
  std::vector<int64_t> order_;                // [K]
  std::vector<int32_t> places_;               // [K] groups of the inputs in that order
  std::vector<float> energy_;                 // [K, padded] diagonal in that order
  std::vector<float> ordered_gram_;           // [K, K] in that order
  std::vector<int64_t> sorted_;               // [K] inputs group by group
  std::vector<float> sorted_gram_;            // [K, K] in that order; empty where it is the inputs' own
  std::vector<float> wanted_;                 // [rows of the block, K]
  std::vector<float> difference_, gradient_;  // [rows of the block, K]
};

absl::Status CheckOptions(const GridDescentOptions& options) {
  if (options.rounds < 1 || options.rounds > 1000 || options.sweeps < 1 || options.sweeps > 1000 ||
      !(options.damp >= 0 && options.damp <= 1)) {
    return DescentError("BAD_SEARCH", absl::StrCat("rounds and sweeps must be 1..1000 and damp 0..1, got ",
                                                   options.rounds, ", ", options.sweeps, ", ", options.damp));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GridDescentResult> SolveGridDescent(absl::Span<const float> weight, int64_t N, int64_t K,
                                                   absl::Span<const float> gram, const GridWeight& start,
                                                   const GridDescentOptions& options, ThreadPool& threads) {
  SAGE_RETURN_IF_ERROR(CheckGridProblem("grid descent", weight, N, K, options.grid));
  SAGE_RETURN_IF_ERROR(CheckOptions(options));
  if (gram.size() != static_cast<size_t>(K * K)) {
    return DescentError("BAD_GRAM_SHAPE",
                        absl::StrCat("the Gram matrix must be [K, K] with K=", K, ", got ", gram.size(), " values"));
  }
  for (const float value : gram) {
    if (!std::isfinite(value)) return DescentError("NON_FINITE_GRAM", absl::StrCat("H must be finite, got ", value));
  }
  SAGE_RETURN_IF_ERROR(CheckGridStart("grid descent", start, N, K, options.grid));
  const int64_t width = GroupWidth(options.grid, K);
  std::vector<int64_t> members(start.g_idx.empty() ? 0 : K / width);
  for (const int32_t g : start.g_idx) ++members[static_cast<size_t>(g)];
  for (const int64_t count : members) {
    if (count != width) {
      return DescentError("BAD_START", absl::StrCat("groups of g_idx must have ", width, " inputs each, got ", count));
    }
  }
  GridDescentResult out;
  out.weight = start;
  GridDescent(weight, N, K, gram, options, threads, out).Run();
  return out;
}

}  // namespace sage
