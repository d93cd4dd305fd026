// Reads the fields that Hugging Face configs of decoder-only models share; each architecture states what differs.
#pragma once

#include "absl/status/statusor.h"
#include "engine/api/model.h"

namespace sage {

struct HfConfigRules {
  const char* architecture = "";
  double default_norm_eps = 1e-6;
  int64_t default_head_dim = 0;  // 0 = hidden / heads
  // What transformers' config classes put where a config.json lacks the key; a key that says null means the other
  // thing.
  int64_t default_kv_heads = 0;  // 0 = as many as heads, which is also what null means
  int64_t default_max_position = 2048;
  int64_t default_window = 4096;      // null = no window
  bool always_qkv_bias = false;       // qwen2
  bool reads_attention_bias = false;  // llama, qwen3: attention_bias puts biases on q, k, v and o
  bool reads_mlp_bias = false;
  bool qk_norm = false;
  enum class Window { kNone, kAllLayers, kQwen } window = Window::kNone;
};

// INVALID_ARGUMENT naming field, rule and value.
absl::StatusOr<DecoderConfig> ParseHfConfig(const Json& config, const Json& generation_config,
                                            const HfConfigRules& rules);

// True when "model_type" equals, or (without model_type) "architectures" names `architecture`.
bool RecognizeHfConfig(const Json& config, const char* model_type, const char* architecture);

}  // namespace sage
