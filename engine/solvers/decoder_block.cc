// Forward as the decoder computes it, backward by the chain rule piece by piece.
#include "engine/solvers/decoder_block.h"

#include <algorithm>
#include <cmath>

#include "engine/quant/integer_grid.h"
#include "engine/solvers/attention_gradient.h"
#include "engine/solvers/block_math.h"
#include "engine/solvers/dense_algebra.h"

namespace sage {
namespace {

constexpr int64_t kGrainRows = 32;
constexpr int64_t kSumRows = 64;  // of a share of a norm's gradient; shares are added in order

void Fit(std::vector<float>& values, int64_t count) { values.resize(static_cast<size_t>(count)); }

}  // namespace

int64_t BlockShape::N(int linear) const {
  switch (linear) {
    case kBlockQ:
      return H * D;
    case kBlockK:
    case kBlockV:
      return KH * D;
    case kBlockGate:
    case kBlockUp:
      return ffn;
    default:
      return hidden;
  }
}

int64_t BlockShape::K(int linear) const { return linear == kBlockO ? H * D : linear == kBlockDown ? ffn : hidden; }

int64_t BlockShape::NormWidth(int norm) const {
  if (norm == kInputNorm || norm == kPostNorm) return hidden;
  return qk_norm ? D : 0;
}

int64_t DecoderBlock::WorkingBytes(const BlockShape& shape, int64_t M) {
  const int64_t q = shape.H * shape.D, kv = shape.KH * shape.D;
  // Named members, then the shares of the query heads and a batch's input, output and target.
  return M * (6 * shape.hidden + 5 * q + 7 * kv + 5 * shape.ffn + 2 * q + 4 * shape.hidden) * 4;
}

void DecoderBlock::Norm(const float* x, const float* norm, int64_t rows, int64_t width, float* out,
                        std::vector<float>* inverse) {
  Fit(*inverse, rows);
  threads_.ParallelFor(rows, kGrainRows, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const float* row = x + m * width;
      const float size = 1.0f / std::sqrt(DotOf(row, row, width) / static_cast<float>(width) + shape_.norm_eps);
      (*inverse)[static_cast<size_t>(m)] = size;
      for (int64_t k = 0; k < width; ++k) out[m * width + k] = row[k] * size * norm[k];
    }
  });
}

void DecoderBlock::NormGradient(const float* x, const float* norm, const std::vector<float>& inverse,
                                const float* d_normed, int64_t rows, int64_t width, float* d_x, bool adds,
                                std::vector<float>* d_norm) {
  const int64_t shares = (rows + kSumRows - 1) / kSumRows;
  std::vector<float> sums(static_cast<size_t>(shares * width));
  threads_.ParallelFor(shares, 1, [&](int64_t first, int64_t last) {
    for (int64_t m = first * kSumRows; m < std::min(last * kSumRows, rows); ++m) {
      const float* row = x + m * width;
      const float* slope = d_normed + m * width;
      const float size = inverse[static_cast<size_t>(m)];
      float* sum = sums.data() + m / kSumRows * width;
      for (int64_t k = 0; k < width; ++k) sum[k] += slope[k] * (row[k] * size);
      if (d_x == nullptr) continue;
      float along = 0;  // sum of slope * norm * x
      for (int64_t k = 0; k < width; ++k) along += slope[k] * norm[k] * row[k];
      const float pull = along * size * size * size / static_cast<float>(width);
      float* to = d_x + m * width;
      for (int64_t k = 0; k < width; ++k) {
        to[k] = (adds ? to[k] : 0.0f) + slope[k] * norm[k] * size - row[k] * pull;
      }
    }
  });
  d_norm->assign(static_cast<size_t>(width), 0.0f);
  for (int64_t s = 0; s < shares; ++s) {
    for (int64_t k = 0; k < width; ++k) (*d_norm)[static_cast<size_t>(k)] += sums[static_cast<size_t>(s * width + k)];
  }
}

void DecoderBlock::Multiply(const BlockWeights& w, int linear, const float* x, float* out) {
  const int64_t N = shape_.N(linear);
  const float* bias = w.bias[static_cast<size_t>(linear)];
  MultiplyTransposed<float>(x, w.weight[static_cast<size_t>(linear)], M_, N, shape_.K(linear), out, threads_);
  if (bias == nullptr) return;
  threads_.ParallelFor(M_, kGrainRows, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      for (int64_t n = 0; n < N; ++n) out[m * N + n] += bias[n];
    }
  });
}

void DecoderBlock::MultiplyGradient(const BlockWeights& w, int linear, const float* d_out, bool accumulate,
                                    float* d_x) {
  const int64_t N = shape_.N(linear), K = shape_.K(linear);
  GemmSpec<float> product;
  product.rows = M_;
  product.columns = K;
  product.depth = N;
  product.a = {d_out, N, 1};
  product.b = {w.weight[static_cast<size_t>(linear)], K, 1};
  product.accumulate = accumulate;
  Gemm(product, d_x, K, threads_);
}

void DecoderBlock::WeightGradient(int linear, const float* d_out, const float* x, std::vector<float>* gradient) {
  const int64_t N = shape_.N(linear), K = shape_.K(linear);
  Fit(*gradient, N * K);
  GemmSpec<float> product;
  product.rows = N;
  product.columns = K;
  product.depth = M_;
  product.a = {d_out, 1, N};
  product.b = {x, K, 1};
  Gemm(product, gradient->data(), K, threads_);
}

void DecoderBlock::RoundRows(int linear, std::vector<float>& rows) {
  if (!shape_.byte_inputs[static_cast<size_t>(linear)]) return;
  const int64_t K = shape_.K(linear);
  threads_.ParallelFor(M_, kGrainRows, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      float* row = rows.data() + m * K;
      float most = 0;
      for (int64_t k = 0; k < K; ++k) most = std::max(most, std::fabs(row[k]));
      if (!(most > 0)) continue;
      const IntegerGrid grid = {most / 127.5f, 0};
      for (int64_t k = 0; k < K; ++k) row[k] = ValueOf(CodeOf(row[k], grid, 8), grid);
    }
  });
}

// Pairs (d, d + D / 2) turn by the row's angles; back: the transposed turn.
void DecoderBlock::Rotate(float* rows, int64_t heads, bool back) {
  const int64_t half = shape_.D / 2;
  const float sign = back ? -1.0f : 1.0f;
  threads_.ParallelFor(M_, kGrainRows, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const float* c = input_.cos + m * half;
      const float* s = input_.sin + m * half;
      for (int64_t h = 0; h < heads; ++h) {
        float* low = rows + (m * heads + h) * shape_.D;
        float* high = low + half;
        for (int64_t d = 0; d < half; ++d) {
          const float a = low[d], b = high[d], turn = sign * s[d];
          low[d] = a * c[d] - b * turn;
          high[d] = b * c[d] + a * turn;
        }
      }
    }
  });
}

void DecoderBlock::Forward(const BlockWeights& w, const BlockInput& input, float* out) {
  input_ = input;
  M_ = 0;
  for (const int64_t length : input.lengths) M_ += length;
  const int64_t hidden = shape_.hidden, ffn = shape_.ffn, q = shape_.H * shape_.D, kv = shape_.KH * shape_.D;
  for (auto* rows : {&first_.normed, &second_.normed, &middle_}) Fit(*rows, M_ * hidden);
  for (auto* rows : {&q_, &attended_}) Fit(*rows, M_ * q);
  for (auto* rows : {&k_, &v_}) Fit(*rows, M_ * kv);
  for (auto* rows : {&gate_, &up_, &product_}) Fit(*rows, M_ * ffn);

  Norm(input.x, w.norm[kInputNorm], M_, hidden, first_.normed.data(), &first_.inverse);
  RoundRows(kBlockQ, first_.normed);
  Multiply(w, kBlockQ, first_.normed.data(), q_.data());
  Multiply(w, kBlockK, first_.normed.data(), k_.data());
  Multiply(w, kBlockV, first_.normed.data(), v_.data());
  if (shape_.qk_norm) {
    q_raw_ = q_;
    k_raw_ = k_;
    Norm(q_raw_.data(), w.norm[kQNorm], M_ * shape_.H, shape_.D, q_.data(), &q_size_);
    Norm(k_raw_.data(), w.norm[kKNorm], M_ * shape_.KH, shape_.D, k_.data(), &k_size_);
  }
  Rotate(q_.data(), shape_.H, false);
  Rotate(k_.data(), shape_.KH, false);
  RunAttention({shape_.H, shape_.KH, shape_.D, shape_.window, input.lengths, q_.data(), k_.data(), v_.data()},
               attended_.data(), threads_);
  RoundRows(kBlockO, attended_);
  Multiply(w, kBlockO, attended_.data(), middle_.data());
  for (int64_t i = 0; i < M_ * hidden; ++i) middle_[static_cast<size_t>(i)] += input.x[i];

  Norm(middle_.data(), w.norm[kPostNorm], M_, hidden, second_.normed.data(), &second_.inverse);
  RoundRows(kBlockGate, second_.normed);
  Multiply(w, kBlockGate, second_.normed.data(), gate_.data());
  Multiply(w, kBlockUp, second_.normed.data(), up_.data());
  threads_.ParallelFor(M_, kGrainRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * ffn; i < end * ffn; ++i) {
      const size_t at = static_cast<size_t>(i);
      product_[at] = gate_[at] / (1.0f + ExpOf(-gate_[at])) * up_[at];
    }
  });
  RoundRows(kBlockDown, product_);
  Multiply(w, kBlockDown, product_.data(), out);
  for (int64_t i = 0; i < M_ * hidden; ++i) out[i] += middle_[static_cast<size_t>(i)];
}

void DecoderBlock::Backward(const BlockWeights& w, const float* d_out, BlockGradient* gradient) {
  BackwardMlp(w, d_out, gradient);
  BackwardAttention(w, gradient);
}

void DecoderBlock::BackwardMlp(const BlockWeights& w, const float* d_out, BlockGradient* gradient) {
  const int64_t hidden = shape_.hidden, ffn = shape_.ffn;
  for (auto* rows : {&d_gate_, &d_up_}) Fit(*rows, M_ * ffn);
  for (auto* rows : {&d_normed_, &d_middle_}) Fit(*rows, M_ * hidden);
  WeightGradient(kBlockDown, d_out, product_.data(), &gradient->weight[kBlockDown]);
  MultiplyGradient(w, kBlockDown, d_out, false, d_up_.data());  // of the product
  threads_.ParallelFor(M_, kGrainRows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * ffn; i < end * ffn; ++i) {
      const size_t at = static_cast<size_t>(i);
      const float sigmoid = 1.0f / (1.0f + ExpOf(-gate_[at])), silu = gate_[at] * sigmoid, slope = d_up_[at];
      d_gate_[at] = slope * up_[at] * (sigmoid + silu * (1.0f - sigmoid));
      d_up_[at] = slope * silu;
    }
  });
  WeightGradient(kBlockGate, d_gate_.data(), second_.normed.data(), &gradient->weight[kBlockGate]);
  WeightGradient(kBlockUp, d_up_.data(), second_.normed.data(), &gradient->weight[kBlockUp]);
  MultiplyGradient(w, kBlockGate, d_gate_.data(), false, d_normed_.data());
  MultiplyGradient(w, kBlockUp, d_up_.data(), true, d_normed_.data());
  std::copy_n(d_out, M_ * hidden, d_middle_.data());
  NormGradient(middle_.data(), w.norm[kPostNorm], second_.inverse, d_normed_.data(), M_, hidden, d_middle_.data(), true,
               &gradient->norm[kPostNorm]);
}

void DecoderBlock::BackwardAttention(const BlockWeights& w, BlockGradient* gradient) {
  const int64_t q = shape_.H * shape_.D, kv = shape_.KH * shape_.D;
  for (auto* rows : {&d_attended_, &d_q_}) Fit(*rows, M_ * q);
  for (auto* rows : {&d_k_, &d_v_}) Fit(*rows, M_ * kv);
  WeightGradient(kBlockO, d_middle_.data(), attended_.data(), &gradient->weight[kBlockO]);
  MultiplyGradient(w, kBlockO, d_middle_.data(), false, d_attended_.data());
  AttentionGradient({shape_.H, shape_.KH, shape_.D, shape_.window, input_.lengths, q_.data(), k_.data(), v_.data()},
                    d_attended_.data(), d_q_.data(), d_k_.data(), d_v_.data(), threads_);
  Rotate(d_q_.data(), shape_.H, true);
  Rotate(d_k_.data(), shape_.KH, true);
  if (shape_.qk_norm) {
    const auto through = [&](const std::vector<float>& raw, int norm, const std::vector<float>& size, int64_t heads,
                             std::vector<float>& slope) {
      const std::vector<float> d_normed = slope;
      NormGradient(raw.data(), w.norm[static_cast<size_t>(norm)], size, d_normed.data(), M_ * heads, shape_.D,
                   slope.data(), false, &gradient->norm[static_cast<size_t>(norm)]);
    };
    through(q_raw_, kQNorm, q_size_, shape_.H, d_q_);
    through(k_raw_, kKNorm, k_size_, shape_.KH, d_k_);
  }
  WeightGradient(kBlockQ, d_q_.data(), first_.normed.data(), &gradient->weight[kBlockQ]);
  WeightGradient(kBlockK, d_k_.data(), first_.normed.data(), &gradient->weight[kBlockK]);
  WeightGradient(kBlockV, d_v_.data(), first_.normed.data(), &gradient->weight[kBlockV]);
  MultiplyGradient(w, kBlockQ, d_q_.data(), false, d_normed_.data());
  MultiplyGradient(w, kBlockK, d_k_.data(), true, d_normed_.data());
  MultiplyGradient(w, kBlockV, d_v_.data(), true, d_normed_.data());
  NormGradient(input_.x, w.norm[kInputNorm], first_.inverse, d_normed_.data(), M_, shape_.hidden, nullptr, false,
               &gradient->norm[kInputNorm]);
}

}  // namespace sage
