// The column loop of GPTQ in lazy blocks, its orders, its damping ladder and GPTAQ's correction.
#include "engine/solvers/gptq.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "engine/solvers/dense_algebra.h"
#include "engine/solvers/triangular_factor.h"

namespace sage {
namespace {

constexpr int64_t kBlock = 128;
constexpr int64_t kRows = 4;
constexpr int64_t kBoundary = 16;

int64_t CeilRows(int64_t N) { return (N + kRows - 1) / kRows; }

absl::Status GptqError(std::string_view reason, const std::string& message) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason, absl::StrCat("gptq: ", message));
}

absl::Status CheckSquare(const char* name, std::string_view shape_reason, std::string_view finite_reason,
                         absl::Span<const float> matrix, int64_t K) {
  if (matrix.size() != static_cast<size_t>(K * K)) {
    return GptqError(shape_reason,
                     absl::StrCat(name, " must be [K, K] with K=", K, ", got ", matrix.size(), " values"));
  }
  for (size_t i = 0; i < matrix.size(); ++i) {
    if (!std::isfinite(matrix[i])) {
      return GptqError(finite_reason,
                       absl::StrCat(name, " must be finite, got ", matrix[i], " at row ", i / static_cast<size_t>(K),
                                    ", column ", i % static_cast<size_t>(K)));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckOptions(const GptqOptions& options) {
  std::vector<double> shares = options.damp_ladder;
  shares.push_back(options.damp);
  for (const double share : shares) {
    if (!(share >= 0 && share <= 1)) {
      return GptqError("BAD_DAMP", absl::StrCat("damp and its ladder must be 0..1, got ", share));
    }
  }
  if (!(options.alpha >= 0 && options.alpha <= 1)) {
    return GptqError("BAD_ALPHA", absl::StrCat("alpha must be 0..1, got ", options.alpha));
  }
  return absl::OkStatus();
}

// The diagonal, its mean over inputs that were ever active, and which were not.
struct Diagonal {
  std::vector<float> values;  // [K]
  double mean = 0;
  int64_t dead = 0;
};

absl::StatusOr<Diagonal> ReadDiagonal(absl::Span<const float> gram, int64_t K) {
  Diagonal out;
  out.values.resize(K);
  for (int64_t k = 0; k < K; ++k) {
    const float value = out.values[k] = gram[k * K + k];
    if (value < 0) {
      return GptqError("GRAM_NOT_POSITIVE",
                       absl::StrCat("the Gram matrix must have no negative diagonal, got ", value, " at ", k));
    }
    if (value == 0) {
      ++out.dead;
      for (int64_t j = 0; j < K; ++j) {
        if (gram[k * K + j] != 0) {
          return GptqError("GRAM_NOT_POSITIVE", absl::StrCat("row ", k,
                                                             " of the Gram matrix must be zero as its "
                                                             "diagonal is, got ",
                                                             gram[k * K + j], " at ", j));
        }
      }
    }
    out.mean += static_cast<double>(value);
  }
  if (out.dead == K) {
    return GptqError("NO_ACTIVATIONS",
                     absl::StrCat("at least one of K=", K, " inputs must have been active, got none"));
  }
  out.mean /= static_cast<double>(K - out.dead);
  return out;
}

// order[position] = input.
std::vector<int64_t> OrderInputs(const std::vector<float>& diagonal, ActOrder order, int64_t width) {
  const int64_t K = static_cast<int64_t>(diagonal.size());
  std::vector<int64_t> inputs(K);
  std::iota(inputs.begin(), inputs.end(), 0);
  const auto larger = [&](int64_t a, int64_t b) { return diagonal[a] > diagonal[b]; };
  if (order == ActOrder::kNone) return inputs;
  if (order != ActOrder::kGroupAware) {
    std::stable_sort(inputs.begin(), inputs.end(), larger);
    return inputs;
  }
  std::vector<int64_t> groups(K / width);
  std::iota(groups.begin(), groups.end(), 0);
  for (const int64_t g : groups) {
    std::stable_sort(inputs.begin() + g * width, inputs.begin() + (g + 1) * width, larger);
  }
  std::stable_sort(groups.begin(), groups.end(),
                   [&](int64_t a, int64_t b) { return larger(inputs[a * width], inputs[b * width]); });
  std::vector<int64_t> out;
  out.reserve(K);
  for (const int64_t g : groups) out.insert(out.end(), inputs.begin() + g * width, inputs.begin() + (g + 1) * width);
  return out;
}

// U of the damped matrix in the order of columns; returns the share of damping used.
template <typename T>
absl::StatusOr<double> FactorDamped(absl::Span<const float> gram, int64_t K, const GptqOptions& options,
                                    const Diagonal& diagonal, const std::vector<int64_t>& order, AlignedBuffer<T>& u,
                                    ThreadPool& threads) {
  std::vector<double> shares = {options.damp};
  for (const double share : options.damp_ladder) {
    if (share > options.damp) shares.push_back(share);
  }
  AlignedBuffer<T> buffer(K * K);
  T* const h = buffer.data();
  u.Reset(K * K);
  int64_t failed = -1;
  for (const double share : shares) {
    threads.ParallelFor(K, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float* row = gram.data() + order[i] * K;
        for (int64_t j = i; j < K; ++j) h[i * K + j] = static_cast<T>(row[order[j]]);
        // An input that was never active has no say: any positive diagonal rounds it by itself.
        const double value = row[order[i]] == 0 ? diagonal.mean : static_cast<double>(row[order[i]]);
        h[i * K + i] = static_cast<T>(value + share * diagonal.mean);
      }
    });
    // No eigenvalue is below what was added, so a pivot below half of it is an artefact of rounding.
    failed = FactorUpper(h, K, u.data(), 0.5 * share * diagonal.mean, threads);
    if (failed < 0) return share;
  }
  return MakeError(absl::StatusCode::kFailedPrecondition, "GRAM_NOT_POSITIVE_DEFINITE",
                   absl::StrCat("gptq: the Gram matrix must be positive definite after damping, got a pivot that is "
                                "not at input ",
                                order[failed], " with every share tried (", absl::StrJoin(shares, ", "),
                                "); more calibration tokens or f64 may help"));
}

template <typename T>
class Solver {
 public:
  Solver(absl::Span<const float> weight, int64_t N, int64_t K, const GptqOptions& options, const Diagonal& diagonal,
         ThreadPool& threads)
      : weight_(weight),
        N_(N),
        K_(K),
        width_(GroupWidth(options.grid, K)),
        G_(K / width_),
        options_(options),
        diagonal_(diagonal),
        threads_(threads),
        order_(OrderInputs(diagonal.values, options.order, width_)),
        grids_(N * G_),
        row_loss_(N) {}

  absl::StatusOr<GptqResult> Run(absl::Span<const float> gram, absl::Span<const float> shift) {
    GptqResult result;
    result.dead_columns = diagonal_.dead;
    SAGE_ASSIGN_OR_RETURN(result.damp, Factor(gram));
    if (!shift.empty()) FindCorrection(shift);
    SAGE_RETURN_IF_ERROR(Prepare());
    result.weight.codes.resize(N_ * K_);
    codes_ = result.weight.codes.data();
    for (int64_t begin = 0; begin < K_;) {
      const int64_t end = BlockEnd(begin);
      RoundBlock(begin, end);
      if (bad_row_.load() >= 0) return BadRow();
      SpreadErrors(begin, end);
      begin = end;
    }
    for (const double loss : row_loss_) result.loss += loss;
    Store(result.weight);
    return result;
  }

 private:
  int64_t GroupAt(int64_t position) const {
    return options_.order == ActOrder::kGroup ? position / width_ : order_[position] / width_;
  }
  bool dynamic_grids() const { return options_.order != ActOrder::kStatic; }

  absl::StatusOr<double> Factor(absl::Span<const float> gram) {
    return FactorDamped<T>(gram, K_, options_, diagonal_, order_, u_, threads_);
  }

  // P = alpha * strictly upper part of (D U^T) times U.
  void FindCorrection(absl::Span<const float> shift) {
    std::vector<T> d(K_ * K_), part(K_ * K_);
    p_.Reset(K_ * K_);
    corrects_ = true;
    threads_.ParallelFor(K_, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t j = 0; j < K_; ++j) d[i * K_ + j] = static_cast<T>(shift[order_[i] * K_ + order_[j]]);
      }
    });
    GemmSpec<T> spec;
    spec.rows = spec.columns = spec.depth = K_;
    spec.a = {d.data(), K_, 1};
    spec.b = {u_.data(), 1, K_};
    spec.zeros = KnownZeros::kRightLower;
    spec.upper_only = true;
    Gemm(spec, part.data(), K_, threads_);
    for (int64_t i = 0; i < K_; ++i) part[i * K_ + i] = 0;
    spec.a = {part.data(), K_, 1};
    spec.b = {u_.data(), K_, 1};
    spec.zeros = KnownZeros::kLeftUpper;
    Gemm(spec, p_.data(), K_, threads_);
    const T alpha = static_cast<T>(options_.alpha);
    for (int64_t i = 0; i < K_ * K_; ++i) p_.data()[i] *= alpha;
  }

  // Weights in the order of columns, and the grids that do not wait for updates.
  absl::Status Prepare() {
    w_.Reset(N_ * K_);
    errors_.resize(N_ * kBlock);
    if (corrects_) before_.resize(N_ * kBlock);
    if (options_.weighted_search) {
      importance_.resize(K_);
      for (int64_t i = 0; i < K_; ++i) {
        importance_[i] = diagonal_.values[dynamic_grids() ? order_[i] : i];
      }
    }
    threads_.ParallelFor(N_, 4, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const float* row = weight_.data() + n * K_;
        for (int64_t i = 0; i < K_; ++i) w_.data()[n * K_ + i] = static_cast<T>(row[order_[i]]);
        for (int64_t g = 0; g < G_ && !dynamic_grids(); ++g) FindGrid(row + g * width_, g * width_, n, g);
      }
    });
    return bad_row_.load() >= 0 ? BadRow() : absl::OkStatus();
  }

  // Blocks end where groups do, so that a group's grid is found from weights that hold every update before it.
  int64_t BlockEnd(int64_t begin) const {
    if (!dynamic_grids()) return std::min(K_, begin + kBlock);
    if (width_ <= kBlock) return std::min(K_, begin + kBlock / width_ * width_);
    return std::min((begin / width_ + 1) * width_, begin + kBlock);
  }

  void FindGrid(const float* values, int64_t first, int64_t n, int64_t g) {
    const GridSpec& spec = options_.grid;
    const IntegerGrid grid =
        options_.search_grid ? SearchGrid(values, importance_.empty() ? nullptr : importance_.data() + first, width_,
                                          spec, options_.search)
                             : GridFromWeights(values, width_, spec.bits, spec.symmetric, spec.scale_dtype, spec.clip);
    grids_[n * G_ + g] = grid;
    if (!std::isfinite(grid.scale)) bad_row_.store(n);
  }

  void RoundBlock(int64_t begin, int64_t end) {
    threads_.ParallelFor(CeilRows(N_), 1, [&](int64_t first, int64_t last) {
      std::vector<float> group(width_);
      for (int64_t r = first; r < last; ++r) {
        RoundRows(r * kRows, std::min(N_, (r + 1) * kRows), begin, end, group);
      }
    });
  }

  // A few rows side by side: a column's division waits for the column before it, but not for its neighbours in other
  // rows, and U's row is read once for all.
  void RoundRows(int64_t first, int64_t last, int64_t begin, int64_t end, std::vector<float>& group) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t g = GroupAt(i);
      if (dynamic_grids() && i % width_ == 0) {
        for (int64_t n = first; n < last; ++n) {
          for (int64_t j = 0; j < width_; ++j) group[j] = static_cast<float>(w_.data()[n * K_ + i + j]);
          FindGrid(group.data(), i, n, g);
        }
      }
      for (int64_t n = first; n < last; ++n) {
        if (!RoundColumn(n, i, grids_[n * G_ + g], begin, end)) {
          bad_row_.store(n);
          return;
        }
      }
    }
  }

  bool RoundColumn(int64_t n, int64_t i, const IntegerGrid& grid, int64_t begin, int64_t end) {
    T* w = w_.data() + n * K_ + i;
    const float value = static_cast<float>(*w);
    if (!std::isfinite(value) || !std::isfinite(grid.scale)) return false;
    const int8_t code = CodeOf(value, grid, options_.grid.bits);
    codes_[n * K_ + order_[i]] = code;
    const T* u = u_.data() + i * K_ + i;
    const T error = (*w - static_cast<T>(ValueOf(code, grid))) / *u;
    row_loss_[n] += static_cast<double>(error) * static_cast<double>(error);
    errors_[n * kBlock + i - begin] = error;
    // From a fixed boundary of kBoundary columns: what a vector stores the next one loads whole. The columns before i +
    // 1 are done, so it does not matter that column i takes its update too (left of it U and P are zero).
    const int64_t first = begin + (i + 1 - begin) / kBoundary * kBoundary, back = i - first;
    const T before = *w;
    kernels_.add_scaled(end - first, -error, u - back, w - back);
    if (corrects_) {
      before_[n * kBlock + i - begin] = before;
      kernels_.add_scaled(end - first, before, p_.data() + i * K_ + first, w - back);
    }
    return true;
  }

  // W[:, end:] -= errors x U[begin:end, end:], and for GPTAQ += w x P.
  void SpreadErrors(int64_t begin, int64_t end) {
    if (end >= K_) return;
    GemmSpec<T> spec;
    spec.rows = N_;
    spec.columns = K_ - end;
    spec.depth = end - begin;
    spec.a = {errors_.data(), kBlock, 1};
    spec.b = {u_.data() + begin * K_ + end, K_, 1};
    spec.sign = -1;
    spec.accumulate = true;
    Gemm(spec, w_.data() + end, K_, threads_);
    if (!corrects_) return;
    spec.a.data = before_.data();
    spec.b.data = p_.data() + begin * K_ + end;
    spec.sign = 1;
    Gemm(spec, w_.data() + end, K_, threads_);
  }

  absl::Status BadRow() const {
    const int64_t n = bad_row_.load();
    for (int64_t g = 0; g < G_; ++g) {
      if (!std::isfinite(grids_[n * G_ + g].scale)) return ScaleOverflow("gptq", n, g, options_.grid);
    }
    return MakeError(absl::StatusCode::kFailedPrecondition, "GPTQ_DIVERGED",
                     absl::StrCat("gptq: updated weights must stay finite, got another value in row ", n));
  }

  void Store(GridWeight& out) const {
    out.scale.resize(N_ * G_);
    out.zero.resize(N_ * G_);
    for (int64_t i = 0; i < N_ * G_; ++i) {
      out.scale[i] = grids_[i].scale;
      out.zero[i] = static_cast<float>(grids_[i].zero);
    }
    if (options_.order != ActOrder::kGroup || G_ == 1) return;
    bool trivial = true;
    out.g_idx.resize(K_);
    for (int64_t i = 0; i < K_; ++i) {
      out.g_idx[order_[i]] = static_cast<int32_t>(i / width_);
      trivial = trivial && i / width_ == order_[i] / width_;
    }
    if (trivial) out.g_idx.clear();
  }

  const absl::Span<const float> weight_;
  const int64_t N_, K_, width_, G_;
  const GptqOptions& options_;
  const Diagonal& diagonal_;
  ThreadPool& threads_;
  const GemmKernels<T>& kernels_ = KernelsOf<T>(HostGemmTier());
  const std::vector<int64_t> order_;  // [K]
  std::vector<IntegerGrid> grids_;    // [N, G]
  std::vector<double> row_loss_;      // [N]
  AlignedBuffer<T> u_, p_;            // [K, K] in the order of columns
  AlignedBuffer<T> w_;                // [N, K] in the order of columns
  bool corrects_ = false;             // p_ is there
  std::vector<T> errors_, before_;    // [N, kBlock]
  std::vector<float> importance_;     // [K] in the order in which grids are found
  int8_t* codes_ = nullptr;
  std::atomic<int64_t> bad_row_{-1};
};

}  // namespace

absl::StatusOr<GptqResult> SolveGptq(absl::Span<const float> weight, int64_t N, int64_t K, absl::Span<const float> gram,
                                     absl::Span<const float> shift, const GptqOptions& options, ThreadPool& threads) {
  SAGE_RETURN_IF_ERROR(CheckGridProblem("gptq", weight, N, K, options.grid));
  SAGE_RETURN_IF_ERROR(CheckOptions(options));
  SAGE_RETURN_IF_ERROR(CheckSquare("the Gram matrix", "BAD_GRAM_SHAPE", "NON_FINITE_GRAM", gram, K));
  if (!shift.empty()) {
    SAGE_RETURN_IF_ERROR(CheckSquare("the shift matrix", "BAD_SHIFT_SHAPE", "NON_FINITE_SHIFT", shift, K));
  }
  SAGE_ASSIGN_OR_RETURN(const Diagonal diagonal, ReadDiagonal(gram, K));
  if (options.f64) return Solver<double>(weight, N, K, options, diagonal, threads).Run(gram, shift);
  return Solver<float>(weight, N, K, options, diagonal, threads).Run(gram, shift);
}

absl::StatusOr<std::vector<float>> RemainingEnergy(absl::Span<const float> gram, int64_t K, const GptqOptions& options,
                                                   ThreadPool& threads) {
  SAGE_RETURN_IF_ERROR(CheckOptions(options));
  SAGE_RETURN_IF_ERROR(CheckSquare("the Gram matrix", "BAD_GRAM_SHAPE", "NON_FINITE_GRAM", gram, K));
  SAGE_ASSIGN_OR_RETURN(const Diagonal diagonal, ReadDiagonal(gram, K));
  const std::vector<int64_t> order = OrderInputs(diagonal.values, options.order, GroupWidth(options.grid, K));
  AlignedBuffer<float> u(0);
  SAGE_RETURN_IF_ERROR(FactorDamped<float>(gram, K, options, diagonal, order, u, threads).status());
  std::vector<float> out(K);
  for (int64_t i = 0; i < K; ++i) {
    const float pivot = u.data()[i * K + i];
    out[order[i]] = diagonal.values[order[i]] == 0 ? 0.0f : 1.0f / (pivot * pivot);
  }
  return out;
}

}  // namespace sage
