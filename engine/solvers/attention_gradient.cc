// One task a sequence and query head, in blocks of rows; each task runs its products alone. The shares that query heads
// have in the gradient of the kv head they read are added in order of the heads.
#include "engine/solvers/attention_gradient.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "engine/solvers/block_math.h"
#include "engine/solvers/dense_algebra.h"

namespace sage {
namespace {

constexpr int64_t kBlockRows = 128;

struct Scratch {
  ThreadPool alone{1};
  std::vector<float> weights, slopes;  // [kBlockRows, longest]
};

// A block of rows of one head, with the columns it can see.
struct HeadBlock {
  int64_t first, rows;      // of the sequence
  int64_t column, columns;  // of the sequence
};

class HeadWork {
 public:
  HeadWork(const AttentionProblem& problem, int64_t begin, int64_t length, int64_t head, Scratch& scratch)
      : p_(problem),
        length_(length),
        q_stride_(problem.H * problem.D),
        kv_stride_(problem.KH * problem.D),
        q_at_(begin * q_stride_ + head * problem.D),
        kv_at_(begin * kv_stride_ + head / (problem.H / problem.KH) * problem.D),
        scale_(1.0f / std::sqrt(static_cast<float>(problem.D))),
        scratch_(scratch) {
    const size_t most = static_cast<size_t>(kBlockRows * length);
    if (scratch.weights.size() < most) scratch.weights.resize(most);
    if (scratch.slopes.size() < most) scratch.slopes.resize(most);
  }

  void Run(float* out) {
    for (int64_t row = 0; row < length_; row += kBlockRows) {
      const HeadBlock b = BlockAt(row);
      Weights(b);
      GemmSpec<float> sum;
      sum.rows = b.rows;
      sum.columns = p_.D;
      sum.depth = b.columns;
      sum.a = {scratch_.weights.data(), b.columns, 1};
      sum.b = {p_.v + kv_at_ + b.column * kv_stride_, kv_stride_, 1};
      Gemm(sum, out + q_at_ + row * q_stride_, q_stride_, scratch_.alone);
    }
  }

  // d_k and d_v [M, H * D]: the share of this query head; zero before.
  void Gradient(const float* d_out, float* d_q, float* d_k, float* d_v) {
    for (int64_t row = 0; row < length_; row += kBlockRows) {
      const HeadBlock b = BlockAt(row);
      const int64_t q_row = q_at_ + row * q_stride_, kv_row = kv_at_ + b.column * kv_stride_;
      const int64_t share = q_at_ + b.column * q_stride_;
      Weights(b);
      GemmSpec<float> by_value;  // d_v += P^T d_out
      by_value.rows = b.columns;
      by_value.columns = p_.D;
      by_value.depth = b.rows;
      by_value.a = {scratch_.weights.data(), 1, b.columns};
      by_value.b = {d_out + q_row, q_stride_, 1};
      by_value.accumulate = true;
      Gemm(by_value, d_v + share, q_stride_, scratch_.alone);
      GemmSpec<float> by_weight;  // d_P = d_out V^T
      by_weight.rows = b.rows;
      by_weight.columns = b.columns;
      by_weight.depth = p_.D;
      by_weight.a = {d_out + q_row, q_stride_, 1};
      by_weight.b = {p_.v + kv_row, 1, kv_stride_};
      Gemm(by_weight, scratch_.slopes.data(), b.columns, scratch_.alone);
      ThroughSoftmax(b);
      GemmSpec<float> by_query;  // d_q = d_S K
      by_query.rows = b.rows;
      by_query.columns = p_.D;
      by_query.depth = b.columns;
      by_query.a = {scratch_.slopes.data(), b.columns, 1};
      by_query.b = {p_.k + kv_row, kv_stride_, 1};
      Gemm(by_query, d_q + q_row, q_stride_, scratch_.alone);
      GemmSpec<float> by_key = by_value;  // d_k += d_S^T Q
      by_key.a = {scratch_.slopes.data(), 1, b.columns};
      by_key.b = {p_.q + q_row, q_stride_, 1};
      Gemm(by_key, d_k + share, q_stride_, scratch_.alone);
    }
  }

 private:
  HeadBlock BlockAt(int64_t row) const {
    const int64_t rows = std::min(kBlockRows, length_ - row);
    const int64_t column = p_.window > 0 ? std::max<int64_t>(0, row - p_.window + 1) : 0;
    return {row, rows, column, row + rows - column};
  }

  // Softmax of the scores, zero where a row does not look.
  void Weights(const HeadBlock& b) {
    GemmSpec<float> scores;
    scores.rows = b.rows;
    scores.columns = b.columns;
    scores.depth = p_.D;
    scores.a = {p_.q + q_at_ + b.first * q_stride_, q_stride_, 1};
    scores.b = {p_.k + kv_at_ + b.column * kv_stride_, 1, kv_stride_};
    Gemm(scores, scratch_.weights.data(), b.columns, scratch_.alone);
    for (int64_t r = 0; r < b.rows; ++r) {
      const int64_t i = b.first + r;
      const int64_t from = (p_.window > 0 ? std::max<int64_t>(0, i - p_.window + 1) : 0) - b.column;
      const int64_t to = i + 1 - b.column;
      float* row = scratch_.weights.data() + r * b.columns;
      const float most = MaxOf(row + from, to - from);
      for (int64_t j = from; j < to; ++j) row[j] = ExpOf((row[j] - most) * scale_);
      const float inverse = 1.0f / SumOf(row + from, to - from);
      for (int64_t j = from; j < to; ++j) row[j] *= inverse;
      std::fill(row, row + from, 0.0f);
      std::fill(row + to, row + b.columns, 0.0f);
    }
  }

  // d_S = P (d_P - sum P d_P) / sqrt(D).
  void ThroughSoftmax(const HeadBlock& b) {
    for (int64_t r = 0; r < b.rows; ++r) {
      const float* weights = scratch_.weights.data() + r * b.columns;
      float* slopes = scratch_.slopes.data() + r * b.columns;
      const float mean = DotOf(weights, slopes, b.columns);
      for (int64_t j = 0; j < b.columns; ++j) slopes[j] = weights[j] * (slopes[j] - mean) * scale_;
    }
  }

  const AttentionProblem& p_;
  const int64_t length_, q_stride_, kv_stride_, q_at_, kv_at_;
  const float scale_;
  Scratch& scratch_;
};

template <typename Body>
void ForEachHead(const AttentionProblem& p, ThreadPool& threads, Body body) {
  std::vector<std::unique_ptr<Scratch>> scratch;
  for (int i = 0; i < threads.size(); ++i) scratch.push_back(std::make_unique<Scratch>());
  std::vector<int64_t> begins;
  int64_t rows = 0;
  for (const int64_t length : p.lengths) {
    begins.push_back(rows);
    rows += length;
  }
  threads.Run(static_cast<int64_t>(begins.size()) * p.H, [&](int64_t task, int worker) {
    const size_t sequence = static_cast<size_t>(task / p.H);
    HeadWork work(p, begins[sequence], p.lengths[sequence], task % p.H, *scratch[static_cast<size_t>(worker)]);
    body(work);
  });
}

}  // namespace

void RunAttention(const AttentionProblem& problem, float* out, ThreadPool& threads) {
  ForEachHead(problem, threads, [&](HeadWork& work) { work.Run(out); });
}

void AttentionGradient(const AttentionProblem& problem, const float* d_out, float* d_q, float* d_k, float* d_v,
                       ThreadPool& threads) {
  int64_t rows = 0;
  for (const int64_t length : problem.lengths) rows += length;
  const int64_t q_width = problem.H * problem.D, kv_width = problem.KH * problem.D, share = problem.H / problem.KH;
  std::vector<float> keys(static_cast<size_t>(rows * q_width)), values(keys.size());
  ForEachHead(problem, threads, [&](HeadWork& work) { work.Gradient(d_out, d_q, keys.data(), values.data()); });
  threads.ParallelFor(rows, 32, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      for (int64_t h = 0; h < problem.KH; ++h) {
        for (int64_t d = 0; d < problem.D; ++d) {
          const int64_t from = m * q_width + h * share * problem.D + d, to = m * kv_width + h * problem.D + d;
          float key = 0, value = 0;
          for (int64_t r = 0; r < share; ++r) {
            key += keys[static_cast<size_t>(from + r * problem.D)];
            value += values[static_cast<size_t>(from + r * problem.D)];
          }
          d_k[to] = key;
          d_v[to] = value;
        }
      }
    }
  });
}

}  // namespace sage
