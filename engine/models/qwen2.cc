// Qwen2 and Qwen2.5: Llama with biases on q, k and v; layers from max_window_layers on may slide.
#include "engine/api/model.h"
#include "engine/decoder/hf_config.h"

namespace sage::models {
namespace {

bool Recognize(const Json& config) { return RecognizeHfConfig(config, "qwen2", "Qwen2ForCausalLM"); }

absl::StatusOr<DecoderConfig> Parse(const Json& config, const Json& generation_config) {
  return ParseHfConfig(config, generation_config,
                       {.architecture = "qwen2",
                        .default_kv_heads = 32,
                        .default_max_position = 32768,
                        .always_qkv_bias = true,
                        .window = HfConfigRules::Window::kQwen});
}

}  // namespace

extern const ModelDef kQwen2;
const ModelDef kQwen2 = {
    .name = "qwen2", .summary = "Qwen2 and Qwen2.5, qkv bias", .recognize = Recognize, .parse = Parse};

}  // namespace sage::models
