// Logits of a whole model on a few ids, for tests that compare two folders.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "engine/base/status.h"
#include "engine/decoder/decoder.h"

namespace sage {

inline absl::StatusOr<std::vector<float>> LogitsOf(const std::string& path) {
  ThreadPool threads(2);
  SAGE_ASSIGN_OR_RETURN(const auto backend, OpenBackend("cpu"));
  SAGE_ASSIGN_OR_RETURN(const auto checkpoint, OpenCheckpoint(path));
  SAGE_ASSIGN_OR_RETURN(const auto decoder,
                        Decoder::Load(checkpoint, DecoderLoadSpec{}, *backend, threads, CancelToken{}, nullptr));
  SAGE_ASSIGN_OR_RETURN(const auto kv,
                        KvArena::Allocate("f32", decoder->kv_layout(16), decoder->config().L, 2, *backend));
  const std::vector<int32_t> pages = {1, 0}, ids = {1, 5, 9, 30, 12, 39, 7, 3, 21, 17, 18, 2, 35, 4, 4, 11, 8, 0, 26};
  const auto M = static_cast<int64_t>(ids.size());
  std::vector<int64_t> rows(ids.size());
  std::iota(rows.begin(), rows.end(), 0);
  const SequenceSlice slice[] = {{0, M, 0, M, pages.data()}};
  ActivationCache cache;
  StepContext ctx;
  ctx.threads = &threads;
  ctx.activations = &cache;
  std::vector<float> hidden(static_cast<size_t>(M * decoder->config().hidden));
  std::vector<float> logits(static_cast<size_t>(M * decoder->config().V));
  SAGE_RETURN_IF_ERROR(decoder->Forward(ctx, {ids, slice, rows}, *kv, hidden.data()));
  SAGE_RETURN_IF_ERROR(decoder->Logits(ctx, hidden.data(), M, logits.data()));
  return logits;
}

// Largest difference over the largest logit.
inline double Apart(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0, largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    most = std::max(most, std::abs(static_cast<double>(a[i]) - b[i]));
    largest = std::max(largest, std::abs(static_cast<double>(a[i])));
  }
  return a.size() == b.size() ? most / largest : 1e9;
}

}  // namespace sage
