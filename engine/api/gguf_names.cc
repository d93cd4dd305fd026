// One table, read from either side.
#include "engine/api/gguf_names.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace sage {
namespace {

struct NamePair {
  const char* gguf;
  const char* hf;
};
// Within "blk.N." and "model.layers.N.".
constexpr NamePair kLayerModules[] = {
    {"attn_q", "self_attn.q_proj"},      {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"}, {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},       {"attn_norm", "input_layernorm"},    {"ffn_norm", "post_attention_layernorm"},
    {"attn_q_norm", "self_attn.q_norm"}, {"attn_k_norm", "self_attn.k_norm"},
};
constexpr NamePair kModules[] = {
    {"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"}};

std::string Translate(const std::string& name, bool to_hf) {
  const size_t dot = name.rfind('.');
  if (dot == name.npos) return "";
  const std::string suffix = name.substr(dot), stem = name.substr(0, dot);
  const auto from = [&](const NamePair& pair) { return to_hf ? pair.gguf : pair.hf; };
  const auto to = [&](const NamePair& pair) { return to_hf ? pair.hf : pair.gguf; };
  const std::string prefix = to_hf ? "blk." : "model.layers.", other = to_hf ? "model.layers." : "blk.";
  if (absl::StartsWith(stem, prefix)) {
    const size_t second = stem.find('.', prefix.size());
    if (second == stem.npos || second == prefix.size()) return "";
    const std::string layer = stem.substr(prefix.size(), second - prefix.size()), rest = stem.substr(second + 1);
    for (const NamePair& pair : kLayerModules) {
      if (rest == from(pair)) return absl::StrCat(other, layer, ".", to(pair), suffix);
    }
    return "";
  }
  for (const NamePair& pair : kModules) {
    if (stem == from(pair)) return absl::StrCat(to(pair), suffix);
  }
  return "";
}

}  // namespace

std::string HfNameOfGguf(const std::string& name) { return Translate(name, true); }
std::string GgufNameOfHf(const std::string& name) { return Translate(name, false); }

}  // namespace sage
