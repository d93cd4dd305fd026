// Finite fields, Paley's constructions, and the Kronecker product applied factor by factor.
#include "engine/solvers/hadamard.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

constexpr int64_t kLargestOrder = int64_t{1} << 22;
constexpr int kMostFactors = 4;

using Polynomial = std::vector<int64_t>;  // coefficients over GF(p), lowest first

bool IsPowerOfTwo(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

// q = p^k with p an odd prime; false otherwise.
bool SplitPrimePower(int64_t q, int64_t& p, int& k) {
  if (q < 3 || q % 2 == 0) return false;
  p = 3;
  while (p * p <= q && q % p != 0) p += 2;
  if (q % p != 0) p = q;
  for (k = 0; q % p == 0; ++k) q /= p;
  return q == 1;
}

// The remainder of a by the monic polynomial m.
Polynomial Remainder(Polynomial a, const Polynomial& m, int64_t p) {
  const size_t degree = m.size() - 1;
  for (size_t top = a.size(); top-- > degree;) {
    const int64_t factor = a[top];
    for (size_t i = 0; i <= degree; ++i) {
      int64_t& c = a[top - degree + i];
      c = ((c - factor * m[i]) % p + p) % p;
    }
  }
  a.resize(std::max<size_t>(degree, 1));
  return a;
}

// Element or polynomial number e: its digits to base p.
Polynomial Digits(int64_t e, int64_t p, int count) {
  Polynomial out(count);
  for (int64_t& digit : out) {
    digit = e % p;
    e /= p;
  }
  return out;
}

// A monic polynomial of degree k over GF(p) that no monic one of degree 1..k/2 divides.
Polynomial Irreducible(int64_t p, int k, int64_t q) {
  for (int64_t candidate = 0; candidate < q; ++candidate) {
    Polynomial m = Digits(candidate, p, k);
    m.push_back(1);
    bool divisible = false;
    int64_t count = 1;
    for (int degree = 1; degree <= k / 2 && !divisible; ++degree) {
      count *= p;
      for (int64_t e = 0; e < count && !divisible; ++e) {
        Polynomial divisor = Digits(e, p, degree);
        divisor.push_back(1);
        const Polynomial rest = Remainder(m, divisor, p);
        divisible = std::all_of(rest.begin(), rest.end(), [](int64_t c) { return c == 0; });
      }
    }
    if (!divisible) return m;
  }
  return {};  // there is one of every degree
}

// Jacobsthal's matrix [q, q]: the quadratic character of a_i - a_j in GF(q).
std::vector<int8_t> Jacobsthal(int64_t q, int64_t p, int k) {
  const Polynomial modulus = Irreducible(p, k, q);
  std::vector<int8_t> character(q, -1);
  character[0] = 0;
  std::vector<Polynomial> elements;
  elements.reserve(q);
  for (int64_t e = 0; e < q; ++e) elements.push_back(Digits(e, p, k));
  for (int64_t e = 1; e < q; ++e) {
    Polynomial square(2 * k - 1);
    for (int i = 0; i < k; ++i) {
      for (int j = 0; j < k; ++j) square[i + j] = (square[i + j] + elements[e][i] * elements[e][j]) % p;
    }
    const Polynomial rest = Remainder(square, modulus, p);
    int64_t number = 0;
    for (int i = k; i-- > 0;) number = number * p + rest[i];
    character[number] = 1;
  }
  std::vector<int8_t> out(q * q);
  for (int64_t i = 0; i < q; ++i) {
    for (int64_t j = 0; j < q; ++j) {
      int64_t number = 0;
      for (int d = k; d-- > 0;) number = number * p + (elements[i][d] - elements[j][d] + p) % p;
      out[i * q + j] = character[number];
    }
  }
  return out;
}

enum class Kind { kNone, kFirst, kSecond };

// Which construction gives the order, and its field.
Kind FindField(int64_t order, int64_t& q, int64_t& p, int& k) {
  if (order < 4 || order > kLargestPaley || order % 4 != 0) return Kind::kNone;
  q = order - 1;  // 3 mod 4
  if (SplitPrimePower(q, p, k)) return Kind::kFirst;
  q = order / 2 - 1;
  if (q % 4 == 1 && SplitPrimePower(q, p, k)) return Kind::kSecond;
  return Kind::kNone;
}

bool IsPaleyOrder(int64_t order) {
  int64_t q = 0, p = 0;
  int k = 0;
  return FindField(order, q, p, k) != Kind::kNone;
}

// Paley orders, smallest first, whose product leaves a power of two of n; false when `count` of them cannot.
bool Decompose(int64_t n, int count, std::vector<int64_t>& orders) {
  if (count == 0) return IsPowerOfTwo(n);
  for (int64_t m = 12; m <= std::min(n, kLargestPaley); m += 4) {
    if (n % m != 0 || IsPowerOfTwo(m) || !IsPaleyOrder(m)) continue;
    orders.push_back(m);
    if (Decompose(n / m, count - 1, orders)) return true;
    orders.pop_back();
  }
  return false;
}

}  // namespace

std::vector<int8_t> PaleyMatrix(int64_t order) {
  int64_t q = 0, p = 0;
  int k = 0;
  const Kind kind = FindField(order, q, p, k);
  if (kind == Kind::kNone) return {};
  const std::vector<int8_t> character = Jacobsthal(q, p, k);
  const int64_t n = q + 1;
  // The bordered matrix C: skew for q = 3 mod 4, symmetric for q = 1 mod 4; C C^T = q I.
  const auto bordered = [&](int64_t i, int64_t j) -> int {
    if (i == 0 && j == 0) return 0;
    if (i == 0) return 1;
    if (j == 0) return kind == Kind::kFirst ? -1 : 1;
    return character[(i - 1) * q + j - 1];
  };
  std::vector<int8_t> out(order * order);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const int c = bordered(i, j), unit = i == j;
      if (kind == Kind::kFirst) {
        out[i * order + j] = static_cast<int8_t>(c + unit);
        continue;
      }
      // C x [1 1; 1 -1] + I x [1 -1; -1 -1].
      int8_t* at = out.data() + 2 * i * order + 2 * j;
      at[0] = static_cast<int8_t>(c + unit);
      at[1] = at[order] = static_cast<int8_t>(c - unit);
      at[order + 1] = static_cast<int8_t>(-c - unit);
    }
  }
  return out;
}

absl::StatusOr<Hadamard> Hadamard::Create(int64_t n) {
  std::vector<int64_t> orders;
  bool found = false;
  if (n >= 1 && n <= kLargestOrder) {
    for (int count = 0; count <= kMostFactors && !found; ++count) found = Decompose(n, count, orders);
  }
  if (!found) {
    int64_t block = n > 0 ? 1 : 0;
    while (n > 0 && n % (2 * block) == 0) block *= 2;
    return MakeError(absl::StatusCode::kInvalidArgument, "NO_HADAMARD_MATRIX",
                     absl::StrCat("hadamard: the order must be a product of 2^k and Paley orders up to ", kLargestPaley,
                                  ", got ", n, "; blocks of ", block, " would do"),
                     {{"block", absl::StrCat(block)}});
  }
  Hadamard out;
  out.order_ = out.sylvester_ = n;
  for (const int64_t order : orders) {
    out.factors_.push_back({order, PaleyMatrix(order)});
    out.sylvester_ /= order;
  }
  return out;
}

std::string Hadamard::Construction() const {
  std::string out;
  for (const Factor& factor : factors_) absl::StrAppend(&out, "paley ", factor.order, " x ");
  return absl::StrCat(out, "sylvester ", sylvester_);
}

int Hadamard::Entry(int64_t row, int64_t column) const {
  const int64_t both = (row % sylvester_) & (column % sylvester_);
  int entry = __builtin_popcountll(static_cast<uint64_t>(both)) % 2 == 0 ? 1 : -1;
  row /= sylvester_;
  column /= sylvester_;
  for (size_t f = factors_.size(); f-- > 0;) {
    const int64_t m = factors_[f].order;
    entry *= factors_[f].matrix[row % m * m + column % m];
    row /= m;
    column /= m;
  }
  return entry;
}

template <typename T>
void Hadamard::RotateRow(T* row, bool transposed, T* work) const {
  for (int64_t half = 1; half < sylvester_; half *= 2) {
    for (int64_t begin = 0; begin < order_; begin += 2 * half) {
      for (int64_t i = begin; i < begin + half; ++i) {
        const T a = row[i], b = row[i + half];
        row[i] = a + b;
        row[i + half] = a - b;
      }
    }
  }
  int64_t inner = sylvester_;
  for (size_t f = factors_.size(); f-- > 0;) {
    const int64_t m = factors_[f].order;
    const int8_t* matrix = factors_[f].matrix.data();
    for (int64_t begin = 0; begin < order_; begin += m * inner) {
      std::copy(row + begin, row + begin + m * inner, work);
      for (int64_t j = 0; j < m; ++j) {
        T* out = row + begin + j * inner;
        std::fill(out, out + inner, T{0});
        for (int64_t i = 0; i < m; ++i) {
          const T sign = static_cast<T>(transposed ? matrix[j * m + i] : matrix[i * m + j]);
          const T* in = work + i * inner;
          for (int64_t s = 0; s < inner; ++s) out[s] += sign * in[s];
        }
      }
    }
    inner *= m;
  }
  const T scale = static_cast<T>(1.0 / std::sqrt(static_cast<double>(order_)));
  for (int64_t i = 0; i < order_; ++i) row[i] *= scale;
}

template <typename T>
void Hadamard::Rotate(T* rows, int64_t M, bool transposed, ThreadPool& threads) const {
  threads.ParallelFor(M, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> work(order_);
    for (int64_t m = begin; m < end; ++m) RotateRow(rows + m * order_, transposed, work.data());
  });
}

template void Hadamard::RotateRow(float*, bool, float*) const;
template void Hadamard::RotateRow(double*, bool, double*) const;
template void Hadamard::Rotate(float*, int64_t, bool, ThreadPool&) const;
template void Hadamard::Rotate(double*, int64_t, bool, ThreadPool&) const;

std::vector<float> RandomSigns(int64_t n, uint64_t seed) {
  std::vector<float> out(n);
  for (int64_t i = 0; i < n; ++i) {
    // SplitMix64: one well mixed word a counter value.
    uint64_t z = seed + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(i + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    out[i] = (z ^ (z >> 31)) >> 63 ? -1.0f : 1.0f;
  }
  return out;
}

}  // namespace sage
