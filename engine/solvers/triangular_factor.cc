// Recursive factorization and inversion by halves.
#include "engine/solvers/triangular_factor.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/solvers/dense_algebra.h"

namespace sage {
namespace {

constexpr int64_t kLeaf = 64;

// Both triangles transposed, so that every inner loop runs along a row: v[j][i] = V(i, j) for i <= j.
struct Leaf {
  double v[kLeaf][kLeaf];
  double u[kLeaf][kLeaf];
};

int64_t FactorLeaf(Leaf& leaf, int64_t n, double least_pivot) {
  for (int64_t j = n - 1; j >= 0; --j) {
    double* row = leaf.v[j];
    if (!(row[j] > least_pivot) || !std::isfinite(row[j])) return j;
    const double root = std::sqrt(row[j]);
    row[j] = root;
    for (int64_t i = 0; i < j; ++i) row[i] /= root;
    for (int64_t k = 0; k < j; ++k) {
      double* other = leaf.v[k];
      const double factor = row[k];
      for (int64_t i = 0; i <= k; ++i) other[i] -= factor * row[i];
    }
  }
  return -1;
}

void InvertLeaf(Leaf& leaf, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    double* row = leaf.u[j];
    std::fill(row, row + j, 0.0);
    for (int64_t k = 0; k < j; ++k) {
      const double factor = leaf.v[j][k];
      for (int64_t i = 0; i <= k; ++i) row[i] -= factor * leaf.u[k][i];
    }
    for (int64_t i = 0; i < j; ++i) row[i] /= leaf.v[j][j];
    row[j] = 1.0 / leaf.v[j][j];
  }
}

// h = [A B; . C]: factor C, then B V22^-T is a product with U22, then A less its square, then U12 = -U11 V12 U22.
template <typename T>
class Factorization {
 public:
  Factorization(int64_t stride, double least_pivot, ThreadPool& threads)
      : stride_(stride), least_pivot_(least_pivot), threads_(threads) {}

  int64_t Run(T* h, T* u, int64_t n) {
    if (n <= kLeaf) return RunLeaf(h, u, n);
    const int64_t lower = (n / 2 + kLeaf - 1) / kLeaf * kLeaf, upper = n - lower;
    T *const h12 = h + upper, *const h22 = h + upper * stride_ + upper;
    T *const u12 = u + upper, *const u22 = u + upper * stride_ + upper;
    const int64_t failed = Run(h22, u22, lower);
    if (failed >= 0) return upper + failed;

    AlignedBuffer<T> buffer(upper * lower);
    GemmSpec<T> spec;
    spec.rows = upper;
    spec.columns = spec.depth = lower;
    spec.a = {h12, stride_, 1};
    spec.b = {u22, 1, stride_};  // U22^T
    spec.zeros = KnownZeros::kRightLower;
    Gemm(spec, buffer.data(), lower, threads_);  // V12
    for (int64_t i = 0; i < upper; ++i) {
      std::copy(buffer.data() + i * lower, buffer.data() + (i + 1) * lower, h12 + i * stride_);
    }

    GemmSpec<T> square;
    square.rows = square.columns = upper;
    square.depth = lower;
    square.a = {h12, stride_, 1};
    square.b = {h12, 1, stride_};
    square.sign = -1;
    square.accumulate = square.upper_only = true;
    Gemm(square, h, stride_, threads_);
    const int64_t failed_upper = Run(h, u, upper);
    if (failed_upper >= 0) return failed_upper;

    spec.b = {u22, stride_, 1};
    spec.zeros = KnownZeros::kRightUpper;
    Gemm(spec, buffer.data(), lower, threads_);  // V12 U22
    GemmSpec<T> last;
    last.rows = last.depth = upper;
    last.columns = lower;
    last.a = {u, stride_, 1};
    last.b = {buffer.data(), lower, 1};
    last.sign = -1;
    last.zeros = KnownZeros::kLeftUpper;
    Gemm(last, u12, stride_, threads_);
    return -1;
  }

 private:
  int64_t RunLeaf(T* h, T* u, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = i; j < n; ++j) leaf_.v[j][i] = static_cast<double>(h[i * stride_ + j]);
    }
    const int64_t failed = FactorLeaf(leaf_, n, least_pivot_);
    if (failed >= 0) return failed;
    InvertLeaf(leaf_, n);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = i; j < n; ++j) {
        h[i * stride_ + j] = static_cast<T>(leaf_.v[j][i]);
        u[i * stride_ + j] = static_cast<T>(leaf_.u[j][i]);
      }
    }
    return -1;
  }

  const int64_t stride_;
  const double least_pivot_;
  ThreadPool& threads_;
  Leaf leaf_;
};

}  // namespace

template <typename T>
int64_t FactorUpper(T* h, int64_t n, T* u, double least_pivot, ThreadPool& threads) {
  std::fill(u, u + n * n, T{0});
  const auto work = std::make_unique<Factorization<T>>(n, least_pivot, threads);
  return n <= 0 ? -1 : work->Run(h, u, n);
}

template int64_t FactorUpper(float*, int64_t, float*, double, ThreadPool&);
template int64_t FactorUpper(double*, int64_t, double*, double, ThreadPool&);

}  // namespace sage
