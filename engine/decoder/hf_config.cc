// Bounds every field of a config.json before anything is sized by it.
#include "engine/decoder/hf_config.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage {
namespace {

absl::Status BadField(const HfConfigRules& rules, const std::string& message) {
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_MODEL_CONFIG",
                   absl::StrCat(rules.architecture, " config: ", message));
}

absl::StatusOr<int64_t> BoundedInt(const Json& config, const char* key, int64_t fallback, int64_t least, int64_t most,
                                   const HfConfigRules& rules) {
  SAGE_ASSIGN_OR_RETURN(const int64_t value, JsonInt(config, key, fallback));
  if (value < least || value > most) {
    return BadField(rules, absl::StrCat(key, " must be in [", least, ", ", most, "], got ", value));
  }
  return value;
}

absl::StatusOr<double> BoundedDouble(const Json& config, const char* key, double fallback, double least, double most,
                                     const HfConfigRules& rules) {
  SAGE_ASSIGN_OR_RETURN(const double value, JsonDouble(config, key, fallback));
  if (!(value >= least && value <= most)) {
    return BadField(rules, absl::StrCat(key, " must be in [", least, ", ", most, "], got ", value));
  }
  return value;
}

absl::Status ParseSizes(const Json& config, const HfConfigRules& rules, DecoderConfig* out) {
  SAGE_ASSIGN_OR_RETURN(out->hidden, BoundedInt(config, "hidden_size", -1, 1, 1 << 18, rules));
  SAGE_ASSIGN_OR_RETURN(out->ffn, BoundedInt(config, "intermediate_size", -1, 1, 1 << 20, rules));
  SAGE_ASSIGN_OR_RETURN(out->L, BoundedInt(config, "num_hidden_layers", -1, 1, 1024, rules));
  SAGE_ASSIGN_OR_RETURN(out->V, BoundedInt(config, "vocab_size", -1, 1, 1 << 22, rules));
  SAGE_ASSIGN_OR_RETURN(const int64_t H, BoundedInt(config, "num_attention_heads", -1, 1, 1024, rules));
  const bool kv_absent = rules.default_kv_heads > 0 && !config.contains("num_key_value_heads");
  SAGE_ASSIGN_OR_RETURN(const int64_t KH, BoundedInt(config, "num_key_value_heads",
                                                     kv_absent ? rules.default_kv_heads : H, 1, 1024, rules));
  if (H % KH != 0) {
    return BadField(rules, absl::StrCat("num_key_value_heads must divide num_attention_heads, got ", KH, " and ", H));
  }
  const int64_t default_d = rules.default_head_dim > 0 ? rules.default_head_dim : out->hidden / H;
  SAGE_ASSIGN_OR_RETURN(const int64_t D, BoundedInt(config, "head_dim", default_d, 2, 1024, rules));
  if (D % 2 != 0) return BadField(rules, absl::StrCat("head_dim must be even, got ", D));
  out->H = static_cast<int>(H);
  out->KH = static_cast<int>(KH);
  out->D = static_cast<int>(D);
  SAGE_ASSIGN_OR_RETURN(out->max_position, BoundedInt(config, "max_position_embeddings", rules.default_max_position, 1,
                                                      int64_t{1} << 32, rules));
  SAGE_ASSIGN_OR_RETURN(out->norm_eps, BoundedDouble(config, "rms_norm_eps", rules.default_norm_eps, 0.0, 1.0, rules));
  return absl::OkStatus();
}

absl::Status ParseFlags(const Json& config, const HfConfigRules& rules, DecoderConfig* out) {
  SAGE_ASSIGN_OR_RETURN(out->tied_embeddings, JsonBool(config, "tie_word_embeddings", false));
  if (rules.reads_attention_bias) {
    SAGE_ASSIGN_OR_RETURN(out->qkv_bias, JsonBool(config, "attention_bias", false));
    out->o_bias = out->qkv_bias;
  }
  if (rules.always_qkv_bias) out->qkv_bias = true;
  if (rules.reads_mlp_bias) {
    SAGE_ASSIGN_OR_RETURN(out->mlp_bias, JsonBool(config, "mlp_bias", false));
  }
  out->qk_norm = rules.qk_norm;
  SAGE_ASSIGN_OR_RETURN(const std::string act, JsonString(config, "hidden_act", "silu"));
  if (act != "silu" && act != "swish") return BadField(rules, absl::StrCat("hidden_act must be silu, got '", act, "'"));
  return absl::OkStatus();
}

// transformers 5 writes {"rope_parameters": {"rope_type", "rope_theta", ...}}, older files rope_theta and rope_scaling,
// and the oldest call the kind "type".
absl::Status ParseRope(const Json& config, const HfConfigRules& rules, DecoderConfig* out) {
  const Json empty = Json::object();
  const Json* scaling = &empty;
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const auto it = config.find(key);
    if (it == config.end() || it->is_null()) continue;
    if (!it->is_object()) return BadField(rules, absl::StrCat(key, " must be an object, got ", it->type_name()));
    scaling = &*it;
    break;
  }
  RopeSpec& rope = out->rope;
  SAGE_ASSIGN_OR_RETURN(const double theta, BoundedDouble(config, "rope_theta", 10000.0, 1.0, 1e15, rules));
  SAGE_ASSIGN_OR_RETURN(rope.theta, BoundedDouble(*scaling, "rope_theta", theta, 1.0, 1e15, rules));
  SAGE_ASSIGN_OR_RETURN(const std::string type, JsonString(*scaling, "type", "default"));
  SAGE_ASSIGN_OR_RETURN(rope.kind, JsonString(*scaling, "rope_type", type));
  if (rope.kind != "default" && rope.kind != "linear" && rope.kind != "dynamic" && rope.kind != "llama3" &&
      rope.kind != "yarn") {
    return MakeError(absl::StatusCode::kUnimplemented, "UNKNOWN_ROPE_SCALING",
                     absl::StrCat(rules.architecture,
                                  " config: rope_type must be one of [default, linear, dynamic, llama3, "
                                  "yarn], got '",
                                  rope.kind, "'"));
  }
  SAGE_ASSIGN_OR_RETURN(const double partial, JsonDouble(config, "partial_rotary_factor", 1.0));
  if (partial != 1.0) return BadField(rules, absl::StrCat("partial_rotary_factor must be 1, got ", partial));
  if (rope.kind != "default" && !scaling->contains("factor")) {
    return BadField(rules, absl::StrCat("rope_scaling of type ", rope.kind, " needs 'factor'"));
  }
  SAGE_ASSIGN_OR_RETURN(rope.factor, BoundedDouble(*scaling, "factor", 1.0, 1e-3, 1e6, rules));
  SAGE_ASSIGN_OR_RETURN(rope.low_freq_factor, BoundedDouble(*scaling, "low_freq_factor", 1.0, 1e-6, 1e6, rules));
  SAGE_ASSIGN_OR_RETURN(rope.high_freq_factor, BoundedDouble(*scaling, "high_freq_factor", 4.0, 1e-6, 1e6, rules));
  if (rope.kind == "llama3" && rope.high_freq_factor <= rope.low_freq_factor) {
    return BadField(rules, "high_freq_factor must be larger than low_freq_factor");
  }
  SAGE_ASSIGN_OR_RETURN(rope.original_max_position, BoundedInt(*scaling, "original_max_position_embeddings",
                                                               out->max_position, 1, int64_t{1} << 32, rules));
  SAGE_ASSIGN_OR_RETURN(rope.attention_factor, BoundedDouble(*scaling, "attention_factor", 0.0, 0.0, 1e3, rules));
  SAGE_ASSIGN_OR_RETURN(rope.mscale, BoundedDouble(*scaling, "mscale", 0.0, -1e3, 1e3, rules));
  SAGE_ASSIGN_OR_RETURN(rope.mscale_all_dim, BoundedDouble(*scaling, "mscale_all_dim", 0.0, -1e3, 1e3, rules));
  SAGE_ASSIGN_OR_RETURN(rope.beta_fast, BoundedDouble(*scaling, "beta_fast", 32.0, 1e-6, 1e6, rules));
  SAGE_ASSIGN_OR_RETURN(rope.beta_slow, BoundedDouble(*scaling, "beta_slow", 1.0, 1e-6, 1e6, rules));
  SAGE_ASSIGN_OR_RETURN(rope.truncate, JsonBool(*scaling, "truncate", true));
  SAGE_ASSIGN_OR_RETURN(rope.interleaved, JsonBool(config, "sage_rope_interleaved", false));
  const auto factors = config.find("sage_rope_freq_factors");
  if (factors != config.end() && factors->is_array()) {
    for (const Json& f : *factors) rope.freq_factors.push_back(f.is_number() ? f.get<float>() : 1.0f);
  }
  return absl::OkStatus();
}

absl::Status ParseWindows(const Json& config, const HfConfigRules& rules, DecoderConfig* out) {
  out->window.assign(static_cast<size_t>(out->L), 0);
  if (rules.window == HfConfigRules::Window::kNone) return absl::OkStatus();
  SAGE_ASSIGN_OR_RETURN(const int64_t window, BoundedInt(config, "sliding_window",
                                                         config.contains("sliding_window") ? 0 : rules.default_window,
                                                         0, int64_t{1} << 32, rules));
  if (window == 0) return absl::OkStatus();
  if (rules.window == HfConfigRules::Window::kAllLayers) {
    out->window.assign(static_cast<size_t>(out->L), window);
    return absl::OkStatus();
  }
  SAGE_ASSIGN_OR_RETURN(const bool use, JsonBool(config, "use_sliding_window", false));
  if (!use) return absl::OkStatus();
  SAGE_ASSIGN_OR_RETURN(const int64_t first, JsonInt(config, "max_window_layers", 28));
  const auto types = config.find("layer_types");
  const bool listed = types != config.end() && types->is_array() && types->size() == static_cast<size_t>(out->L);
  for (int64_t l = 0; l < out->L; ++l) {
    const size_t i = static_cast<size_t>(l);
    const bool slides =
        listed ? (*types)[i].is_string() && (*types)[i].get<std::string>() == "sliding_attention" : l >= first;
    if (slides) out->window[i] = window;
  }
  return absl::OkStatus();
}

void AppendIds(const Json& object, const char* key, int64_t V, std::vector<int32_t>* out) {
  const auto it = object.find(key);
  if (it == object.end()) return;
  const auto add = [&](const Json& value) {
    if (!value.is_number_integer()) return;
    const int64_t id = value.get<int64_t>();
    if (id >= 0 && id < V) out->push_back(static_cast<int32_t>(id));
  };
  if (it->is_array()) {
    for (size_t i = 0; i < it->size() && i < 64; ++i) add((*it)[i]);
  } else {
    add(*it);
  }
}

}  // namespace

absl::StatusOr<DecoderConfig> ParseHfConfig(const Json& config, const Json& generation_config,
                                            const HfConfigRules& rules) {
  DecoderConfig out;
  out.architecture = rules.architecture;
  if (!config.is_object()) return BadField(rules, "must be a JSON object");
  SAGE_RETURN_IF_ERROR(ParseSizes(config, rules, &out));
  SAGE_RETURN_IF_ERROR(ParseFlags(config, rules, &out));
  SAGE_RETURN_IF_ERROR(ParseRope(config, rules, &out));
  SAGE_RETURN_IF_ERROR(ParseWindows(config, rules, &out));
  AppendIds(generation_config, "eos_token_id", out.V, &out.eos_ids);
  if (out.eos_ids.empty()) AppendIds(config, "eos_token_id", out.V, &out.eos_ids);
  std::vector<int32_t> bos;
  AppendIds(config, "bos_token_id", out.V, &bos);
  if (!bos.empty()) out.bos_id = bos[0];
  return out;
}

bool RecognizeHfConfig(const Json& config, const char* model_type, const char* architecture) {
  if (!config.is_object()) return false;
  const auto type = config.find("model_type");
  if (type != config.end() && type->is_string()) return type->get<std::string>() == model_type;
  const auto names = config.find("architectures");
  return names != config.end() && names->is_array() && !names->empty() && (*names)[0].is_string() &&
         (*names)[0].get<std::string>() == architecture;
}

}  // namespace sage
