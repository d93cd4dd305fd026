// Matrix products, token sums and triangular factors against naive f64, over tiers and thread counts bit for bit.
#include "engine/solvers/dense_algebra.h"

#include <cmath>
#include <cstring>
#include <random>
#include <tuple>
#include <vector>

#include "engine/solvers/triangular_factor.h"
#include "gtest/gtest.h"

namespace sage::dense_algebra_test {
namespace {

template <typename T>
std::vector<T> Random(int64_t count, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<T> out(count);
  for (T& v : out) v = static_cast<T>(static_cast<double>(generator()) / 2147483648.0 - 1.0);
  return out;
}

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Naive product in f64, with the bound of a sum's error.
template <typename T>
void ExpectProduct(const GemmSpec<T>& spec, const std::vector<T>& before, const std::vector<T>& c, double epsilon) {
  for (int64_t i = 0; i < spec.rows; ++i) {
    for (int64_t j = 0; j < spec.columns; ++j) {
      const int64_t at = i * spec.columns + j;
      if (spec.upper_only && j < i) {
        ASSERT_EQ(c[at], before[at]);
        continue;
      }
      double sum = spec.accumulate ? static_cast<double>(before[at]) : 0.0, size = 1.0;
      for (int64_t d = 0; d < spec.depth; ++d) {
        const double term = static_cast<double>(spec.a.data[i * spec.a.row_stride + d * spec.a.column_stride]) *
                            static_cast<double>(spec.b.data[d * spec.b.row_stride + j * spec.b.column_stride]);
        sum += static_cast<double>(spec.sign) * term;
        size += std::fabs(term);
      }
      ASSERT_NEAR(static_cast<double>(c[at]), sum, size * epsilon * 16) << i << ", " << j;
    }
  }
}

template <typename T>
void CheckProducts(double epsilon) {
  ThreadPool one(1), three(3);
  std::mt19937 generator(7);
  for (int round = 0; round < 30; ++round) {
    GemmSpec<T> spec;
    spec.rows = 1 + generator() % 90;
    spec.columns = 1 + generator() % 90;
    spec.depth = round == 0 ? 0 : 1 + generator() % 600;
    const std::vector<T> a = Random<T>(spec.rows * spec.depth, generator());
    const std::vector<T> b = Random<T>(spec.depth * spec.columns, generator());
    spec.a = round % 2 ? StridedMatrix<T>{a.data(), spec.depth, 1} : StridedMatrix<T>{a.data(), 1, spec.rows};
    spec.b = round % 3 ? StridedMatrix<T>{b.data(), spec.columns, 1} : StridedMatrix<T>{b.data(), 1, spec.depth};
    spec.sign = round % 5 == 0 ? T{-1} : T{1};
    spec.accumulate = round % 4 == 0;
    spec.upper_only = round % 7 == 0;
    const std::vector<T> before = Random<T>(spec.rows * spec.columns, generator());
    std::vector<T> expected = before;
    Gemm(spec, expected.data(), spec.columns, one);
    ExpectProduct(spec, before, expected, epsilon);
    for (const GemmTier* tier : RunnableGemmTiers()) {
      std::vector<T> c = before;
      Gemm(spec, c.data(), spec.columns, three, *tier);
      EXPECT_TRUE(SameBits(c, expected)) << tier->name;
    }
  }
}

TEST(Gemm, EqualsNaiveInEveryTierF32) { CheckProducts<float>(6e-8); }
TEST(Gemm, EqualsNaiveInEveryTierF64) { CheckProducts<double>(1.2e-16); }

TEST(Gemm, KnownZerosChangeNothing) {
  ThreadPool threads(2);
  const int64_t n = 530;
  std::vector<double> square = Random<double>(n * n, 3), other = Random<double>(n * n, 4);
  for (int64_t i = 0; i < n; ++i) std::fill(square.begin() + i * n, square.begin() + i * n + i, 0.0);
  for (const KnownZeros zeros : {KnownZeros::kLeftUpper, KnownZeros::kRightUpper, KnownZeros::kRightLower}) {
    GemmSpec<double> spec;
    spec.rows = spec.columns = spec.depth = n;
    spec.a = {zeros == KnownZeros::kLeftUpper ? square.data() : other.data(), n, 1};
    spec.b = {zeros == KnownZeros::kLeftUpper ? other.data() : square.data(), n, 1};
    if (zeros == KnownZeros::kRightLower) spec.b = {square.data(), 1, n};
    std::vector<double> plain(n * n, 5.0), skipped(n * n, 6.0);
    Gemm(spec, plain.data(), n, threads);
    spec.zeros = zeros;
    Gemm(spec, skipped.data(), n, threads);
    EXPECT_EQ(plain, skipped);
  }
}

TEST(Gemm, LinearLayer) {
  ThreadPool threads(2);
  const std::vector<float> a = {1, 2, 3, 4, 5, 6}, b = {1, 0, 1, 0, 1, 0};
  std::vector<float> c(4);
  MultiplyTransposed(a.data(), b.data(), 2, 2, 3, c.data(), threads);
  EXPECT_EQ(c, (std::vector<float>{4, 2, 10, 5}));
}

TEST(GramSum, EqualsNaiveAndIgnoresBatchesAndThreads) {
  const int64_t K = 83, M = 1000;
  const std::vector<float> x = Random<float>(M * K, 11);
  ThreadPool one(1), three(3);
  GramSum whole(K), parts(K);
  whole.Add(x.data(), M, one);
  for (int64_t at = 0, step = 1; at < M; at += step, step = step % 300 + 97) {
    step = std::min(step, M - at);
    parts.Add(x.data() + at * K, step, three);
  }
  EXPECT_EQ(whole.tokens(), M);
  const std::vector<double> h = whole.Matrix<double>(one);
  EXPECT_TRUE(SameBits(h, parts.Matrix<double>(three)));
  for (int64_t i = 0; i < K; ++i) {
    for (int64_t j = 0; j < K; ++j) {
      double sum = 0;
      for (int64_t m = 0; m < M; ++m) sum += static_cast<double>(x[m * K + i]) * static_cast<double>(x[m * K + j]);
      ASSERT_NEAR(h[i * K + j], sum, 2e-4);
      ASSERT_EQ(h[i * K + j], h[j * K + i]);
    }
  }
}

TEST(ShiftSum, EqualsNaive) {
  const int64_t K = 37, M = 700;
  const std::vector<float> x = Random<float>(M * K, 12), full = Random<float>(M * K, 13);
  ThreadPool threads(2);
  ShiftSum whole(K), parts(K);
  whole.Add(full.data(), x.data(), M, threads);
  parts.Add(full.data(), x.data(), 300, threads);
  parts.Add(full.data() + 300 * K, x.data() + 300 * K, M - 300, threads);
  const std::vector<double> d = whole.Matrix<double>(threads);
  EXPECT_TRUE(SameBits(d, parts.Matrix<double>(threads)));
  for (int64_t i = 0; i < K; ++i) {
    for (int64_t j = 0; j < K; ++j) {
      double sum = 0;
      for (int64_t m = 0; m < M; ++m) {
        sum += (static_cast<double>(full[m * K + i]) - static_cast<double>(x[m * K + i])) * x[m * K + j];
      }
      ASSERT_NEAR(d[i * K + j], sum, 2e-4);
    }
  }
}

// h + n I of random tokens.
template <typename T>
std::vector<T> PositiveDefinite(int64_t n) {
  ThreadPool threads(2);
  const std::vector<float> x = Random<float>((n + 10) * n, 17);
  GramSum sum(n);
  sum.Add(x.data(), n + 10, threads);
  std::vector<T> h = sum.Matrix<T>(threads);
  for (int64_t i = 0; i < n; ++i) h[i * n + i] += T{1};
  return h;
}

template <typename T>
void CheckFactor(int64_t n, double tolerance) {
  ThreadPool one(1), three(3);
  const std::vector<T> h = PositiveDefinite<T>(n);
  std::vector<T> v = h, u(n * n), v3 = h, u3(n * n);
  ASSERT_EQ(FactorUpper(v.data(), n, u.data(), 0, one), -1);
  ASSERT_EQ(FactorUpper(v3.data(), n, u3.data(), 0, three), -1);
  EXPECT_TRUE(SameBits(v, v3));
  EXPECT_TRUE(SameBits(u, u3));
  double worst_h = 0, worst_inverse = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i; j < n; ++j) {
      double product = 0, identity = 0;
      for (int64_t k = j; k < n; ++k) product += static_cast<double>(v[i * n + k]) * static_cast<double>(v[j * n + k]);
      for (int64_t k = i; k <= j; ++k)
        identity += static_cast<double>(u[i * n + k]) * static_cast<double>(v[k * n + j]);
      worst_h = std::max(worst_h, std::fabs(product - static_cast<double>(h[i * n + j])));
      worst_inverse = std::max(worst_inverse, std::fabs(identity - (i == j ? 1.0 : 0.0)));
    }
    for (int64_t j = 0; j < i; ++j) {
      ASSERT_EQ(u[i * n + j], T{0});
      ASSERT_EQ(v[i * n + j], h[i * n + j]) << "below the diagonal nothing is written";
    }
  }
  EXPECT_LT(worst_h, tolerance * static_cast<double>(n)) << n;
  EXPECT_LT(worst_inverse, tolerance * 10) << n;
}

TEST(FactorUpper, GivesBothTriangles) {
  for (const int64_t n : {1, 2, 63, 64, 65, 130, 200, 333}) {
    CheckFactor<double>(n, 1e-13);
    CheckFactor<float>(n, 3e-5);
  }
}

TEST(FactorUpper, NamesTheFailingColumn) {
  ThreadPool threads(2);
  const int64_t n = 150;
  for (const int64_t bad : {0, 3, 70, 149}) {
    std::vector<double> h(n * n), u(n * n);
    for (int64_t i = 0; i < n; ++i) h[i * n + i] = i == bad ? -1.0 : 2.0;
    EXPECT_EQ(FactorUpper(h.data(), n, u.data(), 0, threads), bad);
  }
  std::vector<double> h = {2, 0, 0, NAN}, u(4);
  EXPECT_EQ(FactorUpper(h.data(), 2, u.data(), 0, threads), 1);
  h = {2, 0, 0, 1e-3};
  EXPECT_EQ(FactorUpper(h.data(), 2, u.data(), 1e-2, threads), 1);
}

}  // namespace
}  // namespace sage::dense_algebra_test
