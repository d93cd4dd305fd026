// Everything an engine is made of, put together by StartEngine (or by a test with a decoder of its own).
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "engine/api/engine.h"
#include "engine/base/map_guard.h"
#include "engine/decoder/decoder.h"
#include "engine/runtime/memory_limit.h"
#include "engine/runtime/scheduler.h"

namespace sage {

struct AdmissionLimits {
  int64_t max_queue_requests = 1024;
  int64_t max_queue_tokens = 1 << 20;  // prompt ids of the waiting choices
};

struct EngineParts {
  std::unique_ptr<Backend> backend;  // outlives decoder and kv
  std::unique_ptr<ThreadPool> threads;
  std::unique_ptr<Decoder> decoder;
  std::unique_ptr<KvArena> kv;
  std::unique_ptr<MemoryPromise> promise;  // of the host memory of kv; ends before it
  int64_t kv_pages = 0;
  int kv_page_tokens = 16;
  int kv_sink_pages = 0;
  bool prefix_cache = false;
  // KV memory of a scoring window of `pages` pages of positions, apart from that of generation.
  std::function<absl::StatusOr<std::unique_ptr<KvArena>>(int64_t pages)> make_arena;
  std::optional<TokenizerFiles> tokenizer;
  SchedulerLimits scheduler;
  AdmissionLimits admission;
  int64_t max_model_len = 0;
  MetricSink* metrics = nullptr;
  MapWatch files;  // the model's: weights that no backend packed are read from them in every step
  EngineInfo info;
};

// Starts the step thread. The engine stops (cancelling what runs) when the last reference goes, which must not be from
// within a sink: the step thread cannot wait for itself.
std::shared_ptr<InferenceEngine> MakeEngine(EngineParts parts);

}  // namespace sage
