// One decoder block in f32 with an exact backward pass: RMSNorm, linear layers with and without bias, norms of q and k,
// rope, causal grouped-query attention, SiLU products, residual sums. For training a block's weights.
//
// Pure arrays: no models, no files. Every sum has one order, so results depend on no number of threads.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/base/thread_pool.h"

namespace sage {

enum BlockLinear { kBlockQ, kBlockK, kBlockV, kBlockO, kBlockGate, kBlockUp, kBlockDown };
constexpr int kBlockLinears = 7;
enum BlockNorm { kInputNorm, kPostNorm, kQNorm, kKNorm };
constexpr int kBlockNorms = 4;

struct BlockShape {
  int64_t hidden = 0, ffn = 0;
  int64_t H = 0, KH = 0, D = 0;
  int64_t window = 0;  // sliding window of the attention, 0 = all
  float norm_eps = 1e-6f;
  bool qk_norm = false;
  // Inputs of each linear are rounded to eight bits, one scale a token (amax / 127.5); their gradient passes through.
  std::array<bool, kBlockLinears> byte_inputs = {};

  int64_t N(int linear) const;
  int64_t K(int linear) const;
  int64_t NormWidth(int norm) const;
};

struct BlockWeights {
  std::array<const float*, kBlockLinears> weight = {};  // [N, K]
  std::array<const float*, kBlockLinears> bias = {};    // [N] or null
  std::array<const float*, kBlockNorms> norm = {};      // [hidden], [hidden], [D], [D]; null = not there
};

struct BlockGradient {
  std::array<std::vector<float>, kBlockLinears> weight;  // [N, K]
  std::array<std::vector<float>, kBlockNorms> norm;
};

// Whole sequences, one after the other.
struct BlockInput {
  absl::Span<const int64_t> lengths;  // rows of each
  const float* x = nullptr;           // [M, hidden]
  const float* cos = nullptr;         // [M, D / 2]
  const float* sin = nullptr;
};

class DecoderBlock {
 public:
  DecoderBlock(const BlockShape& shape, ThreadPool& threads) : shape_(shape), threads_(threads) {}

  // out: [M, hidden]. Keeps what Backward reads; `input` must live until then.
  void Forward(const BlockWeights& w, const BlockInput& input, float* out);
  // From the gradient of the output [M, hidden] of the last Forward to those of weights and norms.
  void Backward(const BlockWeights& w, const float* d_out, BlockGradient* gradient);

  // Of the buffers for M rows, both passes together.
  static int64_t WorkingBytes(const BlockShape& shape, int64_t M);

 private:
  struct Rows {                  // normed rows and what made them
    std::vector<float> normed;   // as the linears read them
    std::vector<float> inverse;  // 1 / size of each
  };
  void Norm(const float* x, const float* norm, int64_t rows, int64_t width, float* out, std::vector<float>* inverse);
  // d_x += what comes through the norm (null: none wanted); d_norm: [width].
  void NormGradient(const float* x, const float* norm, const std::vector<float>& inverse, const float* d_normed,
                    int64_t rows, int64_t width, float* d_x, bool adds, std::vector<float>* d_norm);
  void Multiply(const BlockWeights& w, int linear, const float* x, float* out);
  void MultiplyGradient(const BlockWeights& w, int linear, const float* d_out, bool accumulate, float* d_x);
  void WeightGradient(int linear, const float* d_out, const float* x, std::vector<float>* gradient);
  void RoundRows(int linear, std::vector<float>& rows);
  void Rotate(float* rows, int64_t heads, bool back);
  void BackwardMlp(const BlockWeights& w, const float* d_out, BlockGradient* gradient);
  void BackwardAttention(const BlockWeights& w, BlockGradient* gradient);

  BlockShape shape_;
  ThreadPool& threads_;
  BlockInput input_;
  int64_t M_ = 0;
  Rows first_, second_;
  std::vector<float> q_raw_, k_raw_;      // before their norms
  std::vector<float> q_size_, k_size_;    // inverse, a head of a row each
  std::vector<float> q_, k_, v_;          // as the attention reads them
  std::vector<float> attended_, middle_;  // [M, H * D]; hidden states between the halves
  std::vector<float> gate_, up_, product_;
  std::vector<float> d_gate_, d_up_, d_normed_, d_middle_, d_attended_, d_q_, d_k_, d_v_;
};

}  // namespace sage
