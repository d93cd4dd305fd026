// The words and llama.cpp's rules for mixes and for rows that are no whole blocks.
#include "engine/runtime/gguf_scheme.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status.h"
#include "engine/quant/ggml_blocks.h"

namespace sage {
namespace {

// file_type is llama.cpp's llama_ftype.
const GgufScheme kSchemes[] = {
    {"gguf", true, false, GgmlType::kF32, 0},         {"gguf_f32", false, false, GgmlType::kF32, 0},
    {"gguf_f16", false, false, GgmlType::kF16, 1},    {"gguf_bf16", false, false, GgmlType::kBF16, 32},
    {"gguf_q4_0", false, false, GgmlType::kQ4_0, 2},  {"gguf_q4_1", false, false, GgmlType::kQ4_1, 3},
    {"gguf_q8_0", false, false, GgmlType::kQ8_0, 7},  {"gguf_q4_k", false, false, GgmlType::kQ4_K, 14},
    {"gguf_q6_k", false, false, GgmlType::kQ6_K, 18}, {"gguf_q4_k_m", false, true, GgmlType::kQ4_K, 15},
};

}  // namespace

std::vector<std::string> GgufWords() {
  std::vector<std::string> out;
  for (const GgufScheme& scheme : kSchemes) out.push_back(scheme.word);
  return out;
}

bool IsGgufWord(const std::string& word) { return word.compare(0, 4, "gguf") == 0; }

absl::StatusOr<GgufScheme> ParseGgufScheme(const std::string& word) {
  for (const GgufScheme& scheme : kSchemes) {
    if (scheme.word == word) return scheme;
  }
  const std::string candidates = absl::StrJoin(GgufWords(), ", ");
  return MakeError(absl::StatusCode::kUnimplemented, "UNSUPPORTED_OUTPUT_FORMAT",
                   absl::StrCat("format: GGUF is written as [", candidates, "], got '", word, "'"),
                   {{"candidates", candidates}});
}

absl::StatusOr<GgufScheme> ParseGgufScheme(const std::string& word, const std::map<std::string, std::string>& types) {
  SAGE_ASSIGN_OR_RETURN(GgufScheme out, ParseGgufScheme(word));
  for (const auto& [module, name] : types) {
    const GgmlTypeInfo* type = FindGgmlType(name);
    if (!name.empty() && type == nullptr) {
      return MakeError(absl::StatusCode::kInvalidArgument, "UNKNOWN_GGML_TYPE",
                       absl::StrCat("types: ", module, " must name a ggml type, got '", name, "'"));
    }
    if (type == nullptr) {
      out.modules[module] = std::nullopt;
    } else {
      out.modules[module] = type->type;
    }
  }
  return out;
}

GgmlType WantedGgufType(const GgufScheme& scheme, const std::string& kind, int64_t layer, int64_t L) {
  if (!scheme.mix) return scheme.type;
  if (layer < 0) return GgmlType::kQ6_K;
  const bool more = layer < L / 8 || layer >= 7 * L / 8 || (layer - L / 8) % 3 == 2;
  return more && (kind == "v_proj" || kind == "down_proj") ? GgmlType::kQ6_K : GgmlType::kQ4_K;
}

GgmlType GgufTypeForRows(GgmlType wanted, int64_t K) {
  if (GgmlRowBytes(wanted, K) >= 0) return wanted;
  const GgmlType smaller = wanted == GgmlType::kQ4_K   ? GgmlType::kQ5_0
                           : wanted == GgmlType::kQ6_K ? GgmlType::kQ8_0
                                                       : GgmlType::kF32;
  return GgmlRowBytes(smaller, K) >= 0 ? smaller : GgmlType::kF32;
}

}  // namespace sage
