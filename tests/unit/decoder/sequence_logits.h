// Logits of every position of one sequence, for tests that compare whole models.
#pragma once

#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/decoder/decoder.h"

namespace sage {

// [positions, V]: the ids of `steps` as one sequence, a forward pass each, over an f32 cache whose pages are out of
// order. Up to 128 positions.
inline absl::StatusOr<std::vector<float>> SequenceLogits(std::shared_ptr<Checkpoint> checkpoint,
                                                         const std::vector<std::vector<int32_t>>& steps,
                                                         const DecoderLoadSpec& spec = {}, int workers = 2) {
  ThreadPool threads(workers);
  SAGE_ASSIGN_OR_RETURN(const auto backend, OpenBackend("cpu"));
  SAGE_ASSIGN_OR_RETURN(const auto decoder,
                        Decoder::Load(std::move(checkpoint), spec, *backend, threads, CancelToken{}, nullptr));
  const DecoderConfig& c = decoder->config();
  SAGE_ASSIGN_OR_RETURN(const auto kv, KvArena::Allocate("f32", decoder->kv_layout(16), c.L, 8, *backend));
  const std::vector<int32_t> pages = {2, 0, 1, 3, 7, 5, 4, 6};
  ActivationCache cache;
  StepContext ctx;
  ctx.threads = &threads;
  ctx.activations = &cache;
  std::vector<float> out;
  int64_t context = 0;
  for (const std::vector<int32_t>& ids : steps) {
    const auto M = static_cast<int64_t>(ids.size());
    std::vector<int64_t> rows(ids.size());
    std::iota(rows.begin(), rows.end(), 0);
    const SequenceSlice slice[] = {{0, M, context, context + M, pages.data()}};
    std::vector<float> hidden(static_cast<size_t>(M * c.hidden)), logits(static_cast<size_t>(M * c.V));
    SAGE_RETURN_IF_ERROR(decoder->Forward(ctx, {ids, slice, rows}, *kv, hidden.data()));
    SAGE_RETURN_IF_ERROR(decoder->Logits(ctx, hidden.data(), M, logits.data()));
    out.insert(out.end(), logits.begin(), logits.end());
    context += M;
  }
  return out;
}

}  // namespace sage
