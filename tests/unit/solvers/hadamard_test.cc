// H H^T = n I for every order that is claimed, by bits; rotations are orthogonal and equal the matrix; refusals.
#include "engine/solvers/hadamard.h"

#include <cmath>
#include <cstdlib>
#include <random>

#include "engine/base/status.h"
#include "gtest/gtest.h"

namespace sage::hadamard_test {
namespace {

// Rows packed as bits: two rows are orthogonal when half of their entries differ.
template <typename EntryFn>
bool IsHadamard(int64_t n, const EntryFn& entry) {
  const int64_t words = (n + 63) / 64;
  std::vector<uint64_t> bits(n * words);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const int e = entry(i, j);
      if (e != 1 && e != -1) return false;
      if (e == 1) bits[i * words + j / 64] |= uint64_t{1} << (j % 64);
    }
  }
  for (int64_t a = 0; a < n; ++a) {
    for (int64_t b = 0; b < a; ++b) {
      int64_t differ = 0;
      for (int64_t w = 0; w < words; ++w) differ += __builtin_popcountll(bits[a * words + w] ^ bits[b * words + w]);
      if (2 * differ != n) return false;
    }
  }
  return true;
}

TEST(PaleyMatrix, IsHadamardForEveryOrderClaimed) {
  int64_t claimed = 0;
  for (int64_t order = 1; order <= kLargestPaley + 8; ++order) {
    const std::vector<int8_t> m = PaleyMatrix(order);
    if (m.empty()) continue;
    ++claimed;
    ASSERT_LE(order, kLargestPaley);
    ASSERT_TRUE(IsHadamard(order, [&](int64_t i, int64_t j) { return m[i * order + j]; })) << order;
  }
  EXPECT_EQ(claimed, 129);
  for (const int64_t order : {12, 20, 28, 36, 44, 60, 76, 108, 140, 148, 344}) {
    EXPECT_FALSE(PaleyMatrix(order).empty()) << order;
  }
  for (const int64_t order : {-4, 0, 1, 2, 3, 6, 92, 172, 428}) EXPECT_TRUE(PaleyMatrix(order).empty()) << order;
}

TEST(Hadamard, SizesOfRealModels) {
  ThreadPool threads(2);
  std::mt19937 generator(1);
  for (const int64_t n : {64, 128, 576, 896, 1536, 2048, 3584, 4096, 4864, 5120, 8960, 9728, 11008, 12288, 13824, 14336,
                          18944, 27648, 29568}) {
    const auto h = Hadamard::Create(n);
    ASSERT_TRUE(h.ok()) << h.status();
    EXPECT_EQ(h->order(), n);
    std::vector<double> x(n), turned;
    double before = 0, after = 0;
    for (double& v : x) v = static_cast<double>(generator()) / 4294967296.0 - 0.5, before += v * v;
    turned = x;
    h->Rotate(turned.data(), 1, false, threads);
    for (const double v : turned) after += v * v;
    EXPECT_NEAR(after, before, 1e-9 * before) << n;
    // Some entries of the product against the matrix itself.
    for (int probe = 0; probe < 4; ++probe) {
      const int64_t column = generator() % n;
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += x[i] * h->Entry(i, column);
      EXPECT_NEAR(turned[column], sum / std::sqrt(static_cast<double>(n)), 1e-9) << n;
    }
    // And pairs of rows are orthogonal in integers.
    for (int probe = 0; probe < 50; ++probe) {
      const int64_t a = generator() % n, b = generator() % n;
      int64_t dot = 0;
      for (int64_t j = 0; j < n; ++j) dot += h->Entry(a, j) * h->Entry(b, j);
      EXPECT_EQ(dot, a == b ? n : 0) << n;
    }
    h->Rotate(turned.data(), 1, true, threads);
    for (int64_t i = 0; i < n; ++i) ASSERT_NEAR(turned[i], x[i], 1e-9) << n;
  }
  EXPECT_EQ(Hadamard::Create(4864)->Construction(), "paley 76 x sylvester 64");
  EXPECT_EQ(Hadamard::Create(11008)->Construction(), "paley 344 x sylvester 32");
  EXPECT_EQ(Hadamard::Create(18944)->Construction(), "paley 148 x sylvester 128");
}

TEST(Hadamard, WholeMatricesOfProducts) {
  for (const int64_t n : {1, 2, 4, 8, 24, 144, 336, 576, 896, 1536}) {
    const auto h = Hadamard::Create(n);
    ASSERT_TRUE(h.ok()) << n;
    EXPECT_TRUE(IsHadamard(n, [&](int64_t i, int64_t j) { return h->Entry(i, j); })) << n;
  }
}

TEST(Hadamard, RotationOfFloatsUndoesItselfOnAnyThreads) {
  ThreadPool one(1), three(3);
  const auto h = Hadamard::Create(896);
  std::vector<float> x(5 * 896);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 37 % 101) - 50.0f;
  std::vector<float> a = x, b = x;
  h->Rotate(a.data(), 5, false, one);
  h->Rotate(b.data(), 5, false, three);
  EXPECT_EQ(a, b);
  h->Rotate(a.data(), 5, true, three);
  for (size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(a[i], x[i], 1e-3);
}

TEST(Hadamard, RefusesClearly) {
  for (const int64_t n : {-5, 0, 3, 6, 92, 13696, 172}) {
    const auto h = Hadamard::Create(n);
    EXPECT_EQ(GetErrorReason(h.status()).reason, "NO_HADAMARD_MATRIX") << n;
  }
  EXPECT_EQ(GetErrorReason(Hadamard::Create(13696).status()).metadata.at("block"), "128");
  EXPECT_FALSE(Hadamard::Create(int64_t{1} << 40).ok());
}

TEST(RandomSigns, AreFixedBySeed) {
  const std::vector<float> a = RandomSigns(1000, 7), b = RandomSigns(1000, 7), c = RandomSigns(1000, 8);
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
  int64_t positive = 0;
  for (const float s : a) positive += s == 1.0f;
  EXPECT_GT(positive, 420);
  EXPECT_LT(positive, 580);
}

}  // namespace
}  // namespace sage::hadamard_test
