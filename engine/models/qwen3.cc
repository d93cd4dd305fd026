// Qwen3 dense: q and k normalised per head before rotary positions; head_dim is its own field.
#include "engine/api/model.h"
#include "engine/decoder/hf_config.h"

namespace sage::models {
namespace {

bool Recognize(const Json& config) { return RecognizeHfConfig(config, "qwen3", "Qwen3ForCausalLM"); }

absl::StatusOr<DecoderConfig> Parse(const Json& config, const Json& generation_config) {
  return ParseHfConfig(config, generation_config,
                       {.architecture = "qwen3",
                        .default_head_dim = 128,
                        .default_kv_heads = 32,
                        .default_max_position = 32768,
                        .reads_attention_bias = true,
                        .qk_norm = true,
                        .window = HfConfigRules::Window::kQwen});
}

}  // namespace

extern const ModelDef kQwen3;
const ModelDef kQwen3 = {.name = "qwen3", .summary = "Qwen3 dense, q/k norm", .recognize = Recognize, .parse = Parse};

}  // namespace sage::models
