// Quantization-aware training of one decoder block: codes and scales of its linear layers, and its norms, learn to give
// the block's output on calibration texts.
//
// A code follows a latent value in units of codes straight through the rounding: the forward pass reads the nearest
// code, the backward pass moves the latent. The scale of a group learns by its exact gradient at the present codes.
// Latents begin inside the start's codes, so step 0 is the start bit for bit. Adam, its rates fall along a cosine. Some
// texts are held out; what is returned is the best state that they have seen, the start included.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/cancel.h"
#include "engine/solvers/decoder_block.h"
#include "engine/solvers/grid_weight.h"

namespace sage {

struct BlockTrainingOptions {
  int epochs = 4;               // 1..1000 passes over the texts that are not held out
  int64_t batch_tokens = 1024;  // of a step: whole texts until there are as many
  int checks = 8;               // 1..1000 looks at the held-out texts
  double held_out = 0.0625;     // share of the texts, at least one
  // Step sizes: of latents in codes, of scales and norms relative to their size. A latent must go 0.2 codes or more to
  // change its code: with few texts no code moves, which is right, since codes learned from ten thousand tokens are
  // worse on other texts than the solver's.
  double code_rate = 0.003;
  double scale_rate = 2e-3;
  double norm_rate = 2e-3;
  uint64_t seed = 1;  // of the order of texts
};

// Whole texts, one after the other.
struct BlockTexts {
  absl::Span<const int64_t> lengths;
  const float* x = nullptr;       // [tokens, hidden] what the block reads
  const float* wanted = nullptr;  // [tokens, hidden] what it should put out; each token counts relative to its size
  // cos and sin [length, D / 2] of a text's positions.
  std::function<void(int64_t length, float* cos, float* sin)> rope;
};

struct TrainedLinear {
  bool trains = false;  // false: stays as BlockWeights has it
  GridSpec grid;
  const float* weight = nullptr;  // [N, K] what was rounded to the codes
  GridWeight codes;               // in: the start; out: the best
};

struct TrainedBlock {
  BlockShape shape;
  BlockWeights weights;  // of trained linears only the biases are read
  std::array<TrainedLinear, kBlockLinears> linears;
  std::array<DType, kBlockNorms> norm_dtype = {DType::kF32, DType::kF32, DType::kF32, DType::kF32};
  std::array<std::vector<float>, kBlockNorms> norms;  // out: as stored
};

struct BlockTrainingResult {
  double start_loss = 0, loss = 0;  // mean squared error relative to the size of what is wanted, on held-out texts
  int best_step = 0, steps = 0;     // 0 = the start
};

// How many of the last texts training holds out: they should not have been looked at before, or the start has an
// advantage that no other text would see.
int64_t HeldOutTexts(const BlockTrainingOptions& options, int64_t texts);

// INVALID_ARGUMENT when shapes disagree, a start does not fit its grid or there are fewer than two texts
// (TOO_FEW_TEXTS); CANCELLED between two steps.
absl::StatusOr<BlockTrainingResult> TrainBlock(const BlockTexts& texts, const BlockTrainingOptions& options,
                                               const CancelToken& cancel, ThreadPool& threads, TrainedBlock* block);

// Of a training beyond texts and weights.
int64_t BlockTrainingBytes(const BlockShape& shape, int64_t batch_tokens, int64_t longest);

}  // namespace sage
