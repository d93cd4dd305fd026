// Causal grouped-query attention over whole sequences in f32, and its exact gradient: for training a decoder block.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "engine/base/thread_pool.h"

namespace sage {

struct AttentionProblem {
  int64_t H = 0, KH = 0, D = 0;       // query heads, a multiple of kv heads; head size
  int64_t window = 0;                 // keys j with i - window < j <= i; 0 = all
  absl::Span<const int64_t> lengths;  // rows of each sequence, one after the other
  const float* q = nullptr;           // [M, H * D] after rope
  const float* k = nullptr;           // [M, KH * D] after rope
  const float* v = nullptr;           // [M, KH * D]
};

// out [M, H * D]; scores are divided by sqrt(D).
void RunAttention(const AttentionProblem& problem, float* out, ThreadPool& threads);

// From the gradient of the output [M, H * D] to those of q, k and v. The weights are computed again instead of being
// kept: memory grows with the length of a sequence, not with its square.
void AttentionGradient(const AttentionProblem& problem, const float* d_out, float* d_q, float* d_k, float* d_v,
                       ThreadPool& threads);

}  // namespace sage
