// Blocked, multi-threaded matrix products for calibration: general products and sums of x x^T over tokens.
//
// Each result element is summed in one fixed order (fused chains of a length that follows from the depth alone, chains
// added in index order), so neither the number of threads nor the processor tier nor the shape of a tile changes a bit.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "engine/base/thread_pool.h"
#include "engine/solvers/gemm_kernels.h"

namespace sage {

// Tokens of one f32 chain of the sums below.
constexpr int64_t kGemmDepth = 256;

// Element (i, j) is data[i * row_stride + j * column_stride].
template <typename T>
struct StridedMatrix {
  const T* data = nullptr;
  int64_t row_stride = 0;
  int64_t column_stride = 1;
};

// What is known to be zero in a factor; its blocks are skipped.
enum class KnownZeros {
  kNone,
  kLeftUpper,   // a(i, d) = 0 for d < i
  kRightUpper,  // b(d, j) = 0 for j < d
  kRightLower,  // b(d, j) = 0 for j > d
};

// c = c + sign * a b, or c = sign * a b.
template <typename T>
struct GemmSpec {
  int64_t rows = 0, columns = 0, depth = 0;
  StridedMatrix<T> a;  // [rows, depth]
  StridedMatrix<T> b;  // [depth, columns]
  T sign = 1;          // 1 or -1
  bool accumulate = false;
  bool upper_only = false;  // leaves elements below the diagonal of c as they are
  KnownZeros zeros = KnownZeros::kNone;
};

// c: [rows, columns] with `stride` elements from row to row; must not overlap a or b. T is float or double.
template <typename T>
void Gemm(const GemmSpec<T>& spec, T* c, int64_t stride, ThreadPool& threads, const GemmTier& tier = HostGemmTier());

// c[M, N] = a[M, K] b[N, K]^T, all dense: the linear layer.
template <typename T>
void MultiplyTransposed(const T* a, const T* b, int64_t M, int64_t N, int64_t K, T* c, ThreadPool& threads);

// Memory for vectors, aligned to a cache line, not initialised.
template <typename T>
class AlignedBuffer {
 public:
  explicit AlignedBuffer(int64_t count = 0) { Reset(count); }
  void Reset(int64_t count) {
    data_.reset(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), std::align_val_t(64))));
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  std::unique_ptr<T, Free> data_;
};

// H = sum over tokens of x x^T: f32 chains of kGemmDepth tokens, f64 across. Tokens are counted off in blocks of
// kGemmDepth whatever the calls were, so cutting the same tokens into other batches gives the same bits.
class GramSum {
 public:
  explicit GramSum(int64_t K);
  void Add(const float* x, int64_t M, ThreadPool& threads);  // x: [M, K]
  int64_t tokens() const { return tokens_; }
  int64_t K() const { return K_; }
  // The whole symmetric matrix [K, K]; ends the block begun. T is float or double.
  template <typename T>
  std::vector<T> Matrix(ThreadPool& threads);

 private:
  void Flush(const float* x, int64_t M, ThreadPool& threads);
  int64_t K_, tokens_ = 0, pending_tokens_ = 0;
  std::vector<float> pending_;  // [kGemmDepth, K]
  std::vector<double> sums_;    // upper triangle, row after row
};

// D = sum over tokens of (x_full - x) x^T, the matrix of GPTAQ: x_full are the inputs that the layer has in the
// unquantized model, x the ones it has behind quantized layers. Same order of summation as GramSum.
class ShiftSum {
 public:
  explicit ShiftSum(int64_t K);
  void Add(const float* x_full, const float* x, int64_t M, ThreadPool& threads);  // both [M, K]
  template <typename T>
  std::vector<T> Matrix(ThreadPool& threads);

 private:
  void Flush(const float* difference, const float* x, int64_t M, ThreadPool& threads);
  int64_t K_, pending_tokens_ = 0;
  std::vector<float> pending_difference_, pending_;  // [kGemmDepth, K]
  std::vector<double> sums_;                         // [K, K]
};

// C = sum over tokens of a x^T for rows a [M, N] and x [M, K] that belong together. Same order of summation.
class CrossSum {
 public:
  CrossSum(int64_t N, int64_t K);
  void Add(const float* a, const float* x, int64_t M, ThreadPool& threads);
  // [N, K]; ends the block begun. T is float or double.
  template <typename T>
  std::vector<T> Matrix(ThreadPool& threads);

 private:
  void Flush(ThreadPool& threads);
  int64_t N_, K_, pending_tokens_ = 0;
  std::vector<float> pending_a_, pending_x_;  // [kGemmDepth, N] and [kGemmDepth, K]
  std::vector<double> sums_;                  // [N, K]
};

}  // namespace sage
