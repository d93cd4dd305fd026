// Llama 2, 3, 3.x and relatives: RMSNorm, rotary positions, SwiGLU, grouped-query attention.
#include "engine/api/model.h"
#include "engine/decoder/hf_config.h"

namespace sage::models {
namespace {

bool Recognize(const Json& config) { return RecognizeHfConfig(config, "llama", "LlamaForCausalLM"); }

absl::StatusOr<DecoderConfig> Parse(const Json& config, const Json& generation_config) {
  return ParseHfConfig(config, generation_config,
                       {.architecture = "llama", .reads_attention_bias = true, .reads_mlp_bias = true});
}

}  // namespace

extern const ModelDef kLlama;
const ModelDef kLlama = {.name = "llama",
                         .summary = "Llama 2/3/3.x and relatives with attention_bias and mlp_bias",
                         .recognize = Recognize,
                         .parse = Parse};

}  // namespace sage::models
