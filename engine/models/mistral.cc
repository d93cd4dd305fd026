// Mistral: Llama with sliding-window attention in every layer when sliding_window is set.
#include "engine/api/model.h"
#include "engine/decoder/hf_config.h"

namespace sage::models {
namespace {

bool Recognize(const Json& config) { return RecognizeHfConfig(config, "mistral", "MistralForCausalLM"); }

absl::StatusOr<DecoderConfig> Parse(const Json& config, const Json& generation_config) {
  return ParseHfConfig(config, generation_config,
                       {.architecture = "mistral",
                        .default_kv_heads = 8,
                        .default_max_position = 131072,
                        .window = HfConfigRules::Window::kAllLayers});
}

}  // namespace

extern const ModelDef kMistral;
const ModelDef kMistral = {
    .name = "mistral", .summary = "Mistral, sliding window in every layer", .recognize = Recognize, .parse = Parse};

}  // namespace sage::models
