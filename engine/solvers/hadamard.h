// Orthogonal rotations from Hadamard matrices: H with entries 1 and -1 and H H^T = n I.
//
// Every order is a Kronecker product of Paley matrices and a Sylvester matrix of order 2^k. Paley's two constructions
// take the quadratic character of a finite field GF(q), q an odd prime power: order q + 1 for q = 3 mod 4, order
// 2 (q + 1) for q = 1 mod 4. Nothing is embedded; orders that need other constructions (428, 668) are refused.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/thread_pool.h"

namespace sage {

// Largest order of one Paley factor: applying it costs its order in additions a value.
constexpr int64_t kLargestPaley = 1024;

// The matrix of order q + 1 or 2 (q + 1), or an empty one when `order` (up to kLargestPaley) is no Paley order.
std::vector<int8_t> PaleyMatrix(int64_t order);

class Hadamard {
 public:
  // INVALID_ARGUMENT (NO_HADAMARD_MATRIX) when no product of known factors has this order; metadata "block" is the
  // largest power of two that divides it, a block size that always works.
  static absl::StatusOr<Hadamard> Create(int64_t n);

  int64_t order() const { return order_; }
  // "paley 76 x sylvester 64".
  std::string Construction() const;
  int Entry(int64_t row, int64_t column) const;  // 1 or -1

  // Each of M rows x of `order` values (contiguous) becomes x Q, or x Q^T, with Q = H / sqrt(n): orthogonal, so the two
  // undo each other. T is float or double.
  template <typename T>
  void Rotate(T* rows, int64_t M, bool transposed, ThreadPool& threads) const;
  // One row, on the calling thread; work: as large as the row.
  template <typename T>
  void RotateRow(T* row, bool transposed, T* work) const;

 private:
  struct Factor {
    int64_t order;
    std::vector<int8_t> matrix;
  };

  int64_t order_ = 1;
  std::vector<Factor> factors_;  // outermost first
  int64_t sylvester_ = 1;        // innermost
};

// n signs 1 or -1 from a seed, the same on every machine: diag(signs) H / sqrt(n) is a random rotation.
std::vector<float> RandomSigns(int64_t n, uint64_t seed);

}  // namespace sage
