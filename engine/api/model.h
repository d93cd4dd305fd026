// Model architectures: from a config.json to a decoder configuration. Plug-ins: engine/models/<arch>.cc.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/base/json.h"

namespace sage {

// Rotary embedding as Hugging Face configs describe it (rope_theta, rope_scaling / rope_parameters).
struct RopeSpec {
  std::string kind = "default";  // default, linear, dynamic, llama3, yarn
  double theta = 10000.0;
  double factor = 1.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  int64_t original_max_position = 0;
  double attention_factor = 0;  // yarn: 0 = from factor
  double mscale = 0, mscale_all_dim = 0;
  double beta_fast = 32, beta_slow = 1;
  bool truncate = true;
  bool interleaved = false;         // rotary pairs (2i, 2i+1) instead of (i, i + D/2)
  std::vector<float> freq_factors;  // GGUF rope_freqs.weight: inv_freq[i] /= freq_factors[i]
};

// One decoder-only transformer: everything that differs between Llama, Mistral, Qwen2, Qwen3.
struct DecoderConfig {
  std::string architecture;  // plug-in name
  int64_t L = 0;             // layers
  int64_t hidden = 0;
  int64_t ffn = 0;
  int64_t V = 0;
  int H = 0, KH = 0, D = 0;  // query heads, kv heads, head size
  double norm_eps = 1e-5;
  int64_t max_position = 2048;
  bool tied_embeddings = false;
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool qk_norm = false;
  std::vector<int64_t> window;  // [L] sliding window of each layer, 0 = full attention
  RopeSpec rope;
  std::vector<int32_t> eos_ids;  // from generation_config.json, else config.json
  int32_t bos_id = -1;
};

struct ModelDef {
  std::string_view name;  // "llama"
  std::string_view summary;
  // By "model_type", else "architectures".
  bool (*recognize)(const Json& config) = nullptr;
  // INVALID_ARGUMENT naming the field, rule and value for anything missing, out of range or not supported.
  absl::StatusOr<DecoderConfig> (*parse)(const Json& config, const Json& generation_config) = nullptr;
};

absl::Span<const ModelDef* const> Models();
// UNIMPLEMENTED (reason UNKNOWN_ARCHITECTURE) lists what is known.
absl::StatusOr<DecoderConfig> ParseModelConfig(const Json& config, const Json& generation_config);

// One place of a linear layer in a model: used for loading, checking, calibrating and writing.
struct LinearSlot {
  std::string name;    // "model.layers.0.self_attn.q_proj"
  std::string kind;    // q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head
  int64_t layer = -1;  // -1: outside the layers
  int64_t N = 0, K = 0;
  bool bias = false;
};
std::vector<LinearSlot> ListLinears(const DecoderConfig& config);  // layers in order, then lm_head unless tied
struct TensorSlot {
  std::string name;
  std::vector<int64_t> shape;
};
std::vector<TensorSlot> ListTensors(const DecoderConfig& config);  // embeddings and norms

}  // namespace sage
