// Architecture look-up, and the one list of a decoder's weights that loading, checking and writing share.
#include "engine/api/model.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"

namespace sage {

absl::StatusOr<DecoderConfig> ParseModelConfig(const Json& config, const Json& generation_config) {
  for (const ModelDef* def : Models()) {
    if (def->recognize(config)) return def->parse(config, generation_config);
  }
  std::string names, got;
  for (const ModelDef* def : Models()) absl::StrAppend(&names, names.empty() ? "" : ", ", std::string(def->name));
  const auto type = config.is_object() ? config.find("model_type") : config.end();
  if (config.is_object() && type != config.end()) got = DumpJson(*type).substr(0, 80);
  return MakeError(
      absl::StatusCode::kUnimplemented, "UNKNOWN_ARCHITECTURE",
      absl::StrCat("model config: model_type must be one of [", names, "], got ", got.empty() ? "none" : got),
      {{"candidates", names}});
}

std::vector<LinearSlot> ListLinears(const DecoderConfig& c) {
  std::vector<LinearSlot> out;
  const int64_t q = static_cast<int64_t>(c.H) * c.D;
  const int64_t kv = static_cast<int64_t>(c.KH) * c.D;
  for (int64_t l = 0; l < c.L; ++l) {
    const std::string attn = absl::StrCat("model.layers.", l, ".self_attn.");
    const std::string mlp = absl::StrCat("model.layers.", l, ".mlp.");
    out.push_back({attn + "q_proj", "q_proj", l, q, c.hidden, c.qkv_bias});
    out.push_back({attn + "k_proj", "k_proj", l, kv, c.hidden, c.qkv_bias});
    out.push_back({attn + "v_proj", "v_proj", l, kv, c.hidden, c.qkv_bias});
    out.push_back({attn + "o_proj", "o_proj", l, c.hidden, q, c.o_bias});
    out.push_back({mlp + "gate_proj", "gate_proj", l, c.ffn, c.hidden, c.mlp_bias});
    out.push_back({mlp + "up_proj", "up_proj", l, c.ffn, c.hidden, c.mlp_bias});
    out.push_back({mlp + "down_proj", "down_proj", l, c.hidden, c.ffn, c.mlp_bias});
  }
  if (!c.tied_embeddings) out.push_back({"lm_head", "lm_head", -1, c.V, c.hidden, false});
  return out;
}

std::vector<TensorSlot> ListTensors(const DecoderConfig& c) {
  std::vector<TensorSlot> out = {{"model.embed_tokens.weight", {c.V, c.hidden}}};
  for (int64_t l = 0; l < c.L; ++l) {
    const std::string prefix = absl::StrCat("model.layers.", l, ".");
    out.push_back({prefix + "input_layernorm.weight", {c.hidden}});
    out.push_back({prefix + "post_attention_layernorm.weight", {c.hidden}});
    if (c.qk_norm) {
      out.push_back({prefix + "self_attn.q_norm.weight", {c.D}});
      out.push_back({prefix + "self_attn.k_norm.weight", {c.D}});
    }
  }
  out.push_back({"model.norm.weight", {c.hidden}});
  return out;
}

}  // namespace sage
