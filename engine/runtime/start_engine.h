// From an EngineSpec to a running engine: open, check the memory, load, size the KV cache, start.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/api/engine.h"
#include "engine/decoder/decoder.h"

namespace sage {

// KV pages and context of an engine. `context_limit` is the longest sequence the model supports.
struct KvSizing {
  int64_t pages = 0;
  int64_t max_model_len = 0;
  bool lowered = false;  // the context was cut to what the KV memory holds
};
// INVALID_ARGUMENT (KV_MEMORY_TOO_SMALL, CONTEXT_TOO_LONG) with the figures. `page_bytes` counts all layers.
absl::StatusOr<KvSizing> SizeKv(const EngineSpec& spec, int64_t context_limit, int64_t page_bytes, int page_tokens,
                                int sink_pages = 0);

// The longest sequence a model supports: max_position, stretched by the rope scalings that extend it.
int64_t ContextLimit(const DecoderConfig& config);

// `spec.quantization` words to what the decoder loads with. An artifact path is not a word: see StartLlmEngine.
absl::StatusOr<DecoderLoadSpec> ResolveLoadSpec(const std::string& quantization, const std::string& attn,
                                                const std::string& mlp);

// `threads` is the runtime's number, used when the spec names none.
absl::StatusOr<std::shared_ptr<InferenceEngine>> StartLlmEngine(const EngineSpec& spec, int threads,
                                                                MetricSink* metrics, const CancelToken& cancel,
                                                                const ProgressFn& progress);

}  // namespace sage
