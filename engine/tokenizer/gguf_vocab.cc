// Vocabularies in GGUF metadata ("tokenizer.ggml.*").
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/loaders.h"
#include "engine/tokenizer/pattern.h"
#include "engine/tokenizer/unicode.h"

namespace sage {
namespace {

constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// Mistral's Tekken: words break where lower case meets upper case.
constexpr const char* kTekken = R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
                                R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
                                R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kGpt4o =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

const Json& Key(const Json& metadata, const char* name) {
  static const Json null;
  const auto it = metadata.find(absl::StrCat("tokenizer.ggml.", name));
  return it == metadata.end() ? null : *it;
}

// Names of one kind in llama.cpp: the pattern, whole words of the vocabulary before merges, and a BOS.
bool IsLlama3(const std::string& pre) {
  for (const char* name : {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}) {
    if (pre == name) return true;
  }
  return false;
}

// The patterns a "tokenizer.ggml.pre" name stands for, applied one after the other.
absl::StatusOr<std::vector<const char*>> PrePatterns(const std::string& pre) {
  for (const char* name : {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "mellum"}) {
    if (pre == name) return {{kGpt2}};
  }
  if (IsLlama3(pre) || pre == "dbrx" || pre == "smaug-bpe" || pre == "chatglm-bpe" || pre == "glm4") {
    return {{kLlama3}};
  }
  if (pre == "qwen2" || pre == "deepseek-r1-qwen" || pre == "stablelm2" || pre == "megrez") return {{kQwen2}};
  if (pre == "tekken") return {{kTekken}};
  if (pre == "gpt-4o" || pre == "llama4") return {{kGpt4o}};
  if (pre == "smollm" || pre == "starcoder" || pre == "refact" || pre == "command-r" || pre == "codeshell" ||
      pre == "exaone" || pre == "minerva-7b") {
    return {{R"(\p{N})", kGpt2}};
  }
  if (pre == "default") return {{R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}};
  if (pre == "falcon") return {{R"([\p{P}\$\+<=>\^~\|`]+)", kGpt2, "[0-9][0-9][0-9]"}};
  if (pre == "deepseek-llm") {  // cased letters (without Georgian's), ASCII and full-width signs, CJK, digits
    return {{"[\r\n]", R"(\s?(?:(?![\x{10d0}-\x{10ff}])\p{L&})+)",
             R"(\s?[!-\/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+)", R"(\s+$)",
             R"([\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+)", R"(\p{N}+)"}};
  }
  if (pre == "deepseek-coder") {
    return {{"[\r\n]", R"(\s?\p{L}+)", R"(\s?\p{P}+)", R"([\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+)",
             R"(\p{N})"}};
  }
  return MakeError(absl::StatusCode::kUnimplemented, "TOKENIZER_UNSUPPORTED",
                   absl::StrCat("GGUF vocabulary: unknown tokenizer.ggml.pre '", pre.substr(0, 80), "'"));
}

absl::StatusOr<std::vector<ScoredPiece>> ReadPieces(const Json& metadata) {
  const Json &tokens = Key(metadata, "tokens"), &scores = Key(metadata, "scores"), &types = Key(metadata, "token_type");
  if (!tokens.is_array() || tokens.empty())
    return InvalidTokenizer("GGUF: tokenizer.ggml.tokens must be an array of strings");
  std::vector<ScoredPiece> pieces(tokens.size());
  const bool bad = (!scores.is_null() && (!scores.is_array() || scores.size() != tokens.size())) ||
                   (!types.is_null() && (!types.is_array() || types.size() != tokens.size()));
  if (bad) return InvalidTokenizer("GGUF: scores and token_type must be as long as tokens");
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (!tokens[i].is_string() || (scores.is_array() && !scores[i].is_number()) ||
        (types.is_array() && !types[i].is_number_integer())) {
      return InvalidTokenizer(absl::StrCat("GGUF: token ", i, " must be a string with a numeric score and type"));
    }
    pieces[i].text = tokens[i].get<std::string>();
    if (scores.is_array()) pieces[i].score = scores[i].get<float>();
    if (types.is_array()) {
      const int64_t kind = types[i].get<int64_t>();
      pieces[i].kind = kind >= 1 && kind <= 6 ? static_cast<PieceKind>(kind) : PieceKind::kNormal;
    }
  }
  return pieces;
}

absl::Status BuildBpe(const Json& metadata, const std::vector<ScoredPiece>& pieces, const std::string& pre,
                      PipelineTokenizer& out) {
  auto model = std::make_unique<BpeModel>();
  for (size_t i = 0; i < pieces.size(); ++i)
    SAGE_RETURN_IF_ERROR(model->vocabulary.Add(pieces[i].text, static_cast<int64_t>(i)));
  const Json& merges = Key(metadata, "merges");
  if (!merges.is_array()) return InvalidTokenizer("GGUF: tokenizer.ggml.merges must be an array");
  std::vector<std::pair<std::string, std::string>> pairs;
  for (const Json& merge : merges) {
    const std::string text = merge.is_string() ? merge.get<std::string>() : "";
    const size_t blank = text.find(' ', 1);
    if (text.empty() || blank == std::string::npos) return InvalidTokenizer("GGUF: each merge is \"a b\"");
    pairs.push_back({text.substr(0, blank), text.substr(blank + 1)});
  }
  SAGE_RETURN_IF_ERROR(model->SetMerges(pairs));
  SAGE_ASSIGN_OR_RETURN(const auto patterns, PrePatterns(pre));
  model->ignore_merges = IsLlama3(pre) || pre == "tekken";
  out.model = std::move(model);
  for (const char* pattern : patterns) {
    SAGE_ASSIGN_OR_RETURN(auto regex, Regex::Compile(pattern));
    out.pre_tokenizers.push_back(MakeSplit(std::move(regex), SplitBehavior::kIsolated, false));
  }
  out.pre_tokenizers.push_back(MakeByteLevel(false, false));
  out.decoder.steps.push_back({DecodeStep::Kind::kByteLevel, nullptr, "", 0, 0, false});
  return absl::OkStatus();
}

absl::StatusOr<std::optional<int32_t>> ReadId(const Json& metadata, const char* name, size_t count) {
  const Json& value = Key(metadata, name);
  if (value.is_null()) return std::optional<int32_t>();
  if (!value.is_number_unsigned() || value.get<uint64_t>() >= count) {
    return InvalidTokenizer(absl::StrCat("GGUF: tokenizer.ggml.", name, " must be a vocabulary id"));
  }
  return std::optional<int32_t>(value.get<int32_t>());
}

}  // namespace

absl::StatusOr<PipelinePtr> ParseGgufVocabulary(const Json& metadata) {
  if (!metadata.is_object()) return InvalidTokenizer("GGUF metadata must be an object");
  SAGE_ASSIGN_OR_RETURN(const std::string type, JsonString(metadata, "tokenizer.ggml.model", ""));
  SAGE_ASSIGN_OR_RETURN(const std::string pre, JsonString(metadata, "tokenizer.ggml.pre", "default"));
  SAGE_ASSIGN_OR_RETURN(const auto pieces, ReadPieces(metadata));
  auto out = std::make_shared<PipelineTokenizer>();
  const bool spm = type == "llama";
  if (spm) {
    SAGE_ASSIGN_OR_RETURN(out->model, MakeScoredModel(pieces, false, true, false));
    SAGE_ASSIGN_OR_RETURN(const bool prefix, JsonBool(metadata, "tokenizer.ggml.add_space_prefix", true));
    if (prefix) out->normalizers.push_back(MakePrepend(" "));
    out->normalizers.push_back(MakeReplaceLiteral(" ", "\xE2\x96\x81"));
    out->decoder = SpmDecoder(prefix);
  } else if (type == "gpt2") {
    SAGE_RETURN_IF_ERROR(BuildBpe(metadata, pieces, pre, *out));
  } else {
    return MakeError(
        absl::StatusCode::kUnimplemented, "TOKENIZER_UNSUPPORTED",
        absl::StrCat("GGUF vocabulary: tokenizer.ggml.model must be llama or gpt2, got '", type.substr(0, 80), "'"));
  }
  SAGE_ASSIGN_OR_RETURN(out->bos, ReadId(metadata, "bos_token_id", pieces.size()));
  SAGE_ASSIGN_OR_RETURN(out->eos, ReadId(metadata, "eos_token_id", pieces.size()));
  const bool llama3 = type == "gpt2" && IsLlama3(pre);
  SAGE_ASSIGN_OR_RETURN(const bool add_bos, JsonBool(metadata, "tokenizer.ggml.add_bos_token", spm || llama3));
  SAGE_ASSIGN_OR_RETURN(const bool add_eos, JsonBool(metadata, "tokenizer.ggml.add_eos_token", false));
  if (add_bos && out->bos) out->prefix_ids = {*out->bos};
  if (add_eos && out->eos) out->suffix_ids = {*out->eos};
  std::vector<AddedToken> added;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const PieceKind kind = pieces[i].kind;
    if (kind != PieceKind::kControl && kind != PieceKind::kUserDefined && kind != PieceKind::kUnknown) continue;
    AddedToken token;
    token.id = static_cast<int32_t>(i);
    token.content = pieces[i].text;
    token.special = kind != PieceKind::kUserDefined;
    added.push_back(std::move(token));
  }
  SAGE_RETURN_IF_ERROR(out->AddTokens(added));
  SAGE_RETURN_IF_ERROR(out->Finish());
  out->kind_name = absl::StrCat("gguf:", spm ? "llama" : pre);
  return out;
}

absl::StatusOr<TokenizerFiles> LoadGgufTokenizer(const Json& metadata) {
  const bool none =
      Key(metadata, "model").is_null() || Key(metadata, "model") == "none" || Key(metadata, "model") == "no_vocab";
  if (metadata.is_object() && none && Key(metadata, "tokens").is_null()) {
    return MakeError(absl::StatusCode::kNotFound, "TOKENIZER_NOT_FOUND",
                     "GGUF: the file has no vocabulary (tokenizer.ggml.*)");
  }
  SAGE_ASSIGN_OR_RETURN(PipelinePtr pipeline, ParseGgufVocabulary(metadata));
  TokenizerFiles files;
  SAGE_ASSIGN_OR_RETURN(files.chat_template, JsonString(metadata, "tokenizer.chat_template", ""));
  SAGE_ASSIGN_OR_RETURN(files.tool_template, JsonString(metadata, "tokenizer.chat_template.tool_use", ""));
  if (pipeline->bos) files.bos_token = pipeline->IdToToken(*pipeline->bos).value_or("");
  if (pipeline->eos) files.eos_token = pipeline->IdToToken(*pipeline->eos).value_or("");
  files.tokenizer = std::move(pipeline);
  return files;
}

}  // namespace sage
