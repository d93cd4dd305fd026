// Writes tokenizer.json and tokenizer_config.json from "tokenizer.ggml.*" metadata (llama.cpp's GGUF vocabulary keys).
#include "engine/runtime/artifact_tokenizer.h"

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tensor/gguf_file.h"

namespace sage {
namespace {

constexpr char kGpt2Split[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr char kLlama3Split[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwen2Split[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kSpace[] = "\xe2\x96\x81";  // U+2581, SentencePiece's space

enum TokenType { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

struct Vocabulary {
  std::string model, pre, chat_template, tool_template;
  std::vector<std::string> tokens;
  std::vector<int64_t> types;
  std::vector<double> scores;
  std::vector<std::string> merges;
  int64_t bos = -1, eos = -1, unknown = -1, pad = -1;
  bool add_bos = false, add_eos = false, space_prefix = true;
};

absl::Status Refuse(const std::string& message) {
  return MakeError(absl::StatusCode::kUnimplemented, "GGUF_TOKENIZER", absl::StrCat("GGUF tokenizer: ", message));
}

template <typename T>
absl::StatusOr<std::vector<T>> Array(const Json& metadata, const char* key, bool (Json::*is)() const noexcept) {
  std::vector<T> out;
  const auto it = metadata.find(key);
  if (it == metadata.end()) return out;
  if (!it->is_array()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_GGUF", absl::StrCat("GGUF: ", key, " must be an array"));
  }
  for (const Json& value : *it) {
    if (!(value.*is)()) {
      return MakeError(absl::StatusCode::kInvalidArgument, "BAD_GGUF",
                       absl::StrCat("GGUF: ", key, " has a value of another type"));
    }
    out.push_back(value.get<T>());
  }
  return out;
}

absl::StatusOr<int64_t> TokenId(const Json& metadata, const char* key, size_t vocab) {
  SAGE_ASSIGN_OR_RETURN(const int64_t id, JsonInt(metadata, key, -1));
  return id >= 0 && id < static_cast<int64_t>(vocab) ? id : -1;
}

absl::StatusOr<Vocabulary> ReadVocabulary(const Json& metadata) {
  Vocabulary v;
  SAGE_ASSIGN_OR_RETURN(v.model, JsonString(metadata, "tokenizer.ggml.model", ""));
  SAGE_ASSIGN_OR_RETURN(v.pre, JsonString(metadata, "tokenizer.ggml.pre", "default"));
  SAGE_ASSIGN_OR_RETURN(v.chat_template, JsonString(metadata, "tokenizer.chat_template", ""));
  SAGE_ASSIGN_OR_RETURN(v.tool_template, JsonString(metadata, "tokenizer.chat_template.tool_use", ""));
  SAGE_ASSIGN_OR_RETURN(v.tokens, Array<std::string>(metadata, "tokenizer.ggml.tokens", &Json::is_string));
  SAGE_ASSIGN_OR_RETURN(v.types, Array<int64_t>(metadata, "tokenizer.ggml.token_type", &Json::is_number_integer));
  SAGE_ASSIGN_OR_RETURN(v.scores, Array<double>(metadata, "tokenizer.ggml.scores", &Json::is_number));
  SAGE_ASSIGN_OR_RETURN(v.merges, Array<std::string>(metadata, "tokenizer.ggml.merges", &Json::is_string));
  const size_t V = v.tokens.size();
  v.types.resize(V, kNormal);
  v.scores.resize(V, 0);
  SAGE_ASSIGN_OR_RETURN(v.bos, TokenId(metadata, "tokenizer.ggml.bos_token_id", V));
  SAGE_ASSIGN_OR_RETURN(v.eos, TokenId(metadata, "tokenizer.ggml.eos_token_id", V));
  SAGE_ASSIGN_OR_RETURN(v.unknown, TokenId(metadata, "tokenizer.ggml.unknown_token_id", V));
  SAGE_ASSIGN_OR_RETURN(v.pad, TokenId(metadata, "tokenizer.ggml.padding_token_id", V));
  const bool spm = v.model == "llama";
  SAGE_ASSIGN_OR_RETURN(v.add_bos, JsonBool(metadata, "tokenizer.ggml.add_bos_token", spm || v.pre == "llama-bpe"));
  SAGE_ASSIGN_OR_RETURN(v.add_eos, JsonBool(metadata, "tokenizer.ggml.add_eos_token", false));
  SAGE_ASSIGN_OR_RETURN(v.space_prefix, JsonBool(metadata, "tokenizer.ggml.add_space_prefix", true));
  if (spm && v.unknown < 0) v.unknown = V > 0 ? 0 : -1;  // llama.cpp's defaults for SentencePiece: 0, 1, 2
  if (spm && v.bos < 0 && V > 2) v.bos = 1;
  if (spm && v.eos < 0 && V > 2) v.eos = 2;
  return v;
}

Json Split(const char* pattern) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}

Json ByteLevel(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

Json Sequence(const char* member, std::vector<Json> parts) {
  return {{"type", "Sequence"}, {member, std::move(parts)}};
}

// The split of llama.cpp's pre-tokenizer names, as Hugging Face writes it.
absl::StatusOr<Json> PreTokenizer(const std::string& pre) {
  for (const char* name : {"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "dbrx", "smaug-bpe"}) {
    if (pre == name) return Sequence("pretokenizers", {Split(kLlama3Split), ByteLevel(false)});
  }
  for (const char* name : {"qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"}) {
    if (pre == name) return Sequence("pretokenizers", {Split(kQwen2Split), ByteLevel(false)});
  }
  for (const char* name : {"gpt-2", "mpt", "olmo", "jais", "phi-2", "trillion", "gigachat"}) {
    if (pre == name) return ByteLevel(true);
  }
  for (const char* name : {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}) {
    if (pre == name) {
      return Sequence("pretokenizers", {{{"type", "Digits"}, {"individual_digits", true}}, ByteLevel(true)});
    }
  }
  if (pre == "default") {
    return Sequence("pretokenizers", {Split(R"([\p{P}\$\+<=>\^~\|`]+)"), Split(kGpt2Split), Split(R"(\p{N}+)"),
                                      Split("[0-9][0-9][0-9]"), ByteLevel(false)});
  }
  return Refuse(absl::StrCat("pre-tokenizer '", pre, "' has no written form here"));
}

size_t CharacterBytes(unsigned char lead) { return lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4; }

std::vector<size_t> CharacterStarts(const std::string& text) {
  std::vector<size_t> starts;
  for (size_t i = 0; i < text.size(); i += CharacterBytes(static_cast<unsigned char>(text[i]))) starts.push_back(i);
  return starts;
}

// Every way to make a piece of two others, ranked by the piece's score, then by length of the parts, larger first.
Json MergesFromScores(const Vocabulary& v) {
  struct Merge {
    std::string left, right;
    double score;
    size_t left_length, right_length;
    int64_t left_id, right_id;
  };
  std::unordered_map<std::string, int64_t> ids;
  const auto mergeable = [&](size_t i) {
    return (v.types[i] == kNormal || v.types[i] == kUserDefined) && v.tokens[i].find(' ') == std::string::npos;
  };
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    if (mergeable(i)) ids.emplace(v.tokens[i], static_cast<int64_t>(i));
  }
  std::vector<Merge> merges;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    const std::string& piece = v.tokens[i];
    if (!mergeable(i) || piece.size() > 512) continue;
    const std::vector<size_t> starts = CharacterStarts(piece);
    std::vector<Merge> local;
    for (size_t c = 1; c < starts.size(); ++c) {
      const auto left = ids.find(piece.substr(0, starts[c])), right = ids.find(piece.substr(starts[c]));
      if (left == ids.end() || right == ids.end()) continue;
      local.push_back({left->first, right->first, v.scores[i], c, starts.size() - c, left->second, right->second});
    }
    std::stable_sort(local.begin(), local.end(), [](const Merge& a, const Merge& b) {
      return a.left_id != b.left_id ? a.left_id > b.left_id : a.right_id > b.right_id;
    });
    for (Merge& merge : local) merges.push_back(std::move(merge));
  }
  std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.left_length != b.left_length ? a.left_length > b.left_length : a.right_length > b.right_length;
  });
  Json out = Json::array();
  for (const Merge& merge : merges) out.push_back(merge.left + " " + merge.right);
  return out;
}

Json AddedTokens(const Vocabulary& v) {
  Json out = Json::array();
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    const bool special = v.types[i] == kControl || v.types[i] == kUnknown;
    if (!special && v.types[i] != kUserDefined) continue;
    out.push_back({{"id", i},
                   {"content", v.tokens[i]},
                   {"single_word", false},
                   {"lstrip", false},
                   {"rstrip", false},
                   {"normalized", false},
                   {"special", special}});
  }
  return out;
}

Json PostProcessor(const Vocabulary& v) {
  const bool bos = v.add_bos && v.bos >= 0, eos = v.add_eos && v.eos >= 0;
  if (!bos && !eos) {
    if (v.model == "llama") return nullptr;
    return {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", false}, {"use_regex", true}};
  }
  Json special = Json::object();
  const auto token = [&](int64_t id, int type) {
    const std::string& text = v.tokens[static_cast<size_t>(id)];
    special[text] = {{"id", text}, {"ids", {id}}, {"tokens", {text}}};
    return Json{{"SpecialToken", {{"id", text}, {"type_id", type}}}};
  };
  const auto sequence = [](const char* name, int type) {
    return Json{{"Sequence", {{"id", name}, {"type_id", type}}}};
  };
  Json single = Json::array(), pair = Json::array();
  for (const int type : {0, 1}) {
    if (bos) pair.push_back(token(v.bos, type));
    pair.push_back(sequence(type == 0 ? "A" : "B", type));
    if (eos) pair.push_back(token(v.eos, type));
    if (type == 0) single = pair;
  }
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}};
}

absl::StatusOr<Json> VocabularyObject(const Vocabulary& v) {
  Json out = Json::object();
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    if (out.contains(v.tokens[i])) {
      return Refuse(absl::StrCat("token ", i, " has the text of an earlier one: '", v.tokens[i].substr(0, 40), "'"));
    }
    out[v.tokens[i]] = i;
  }
  return out;
}

absl::Status FillByteLevel(const Vocabulary& v, Json& json) {
  SAGE_ASSIGN_OR_RETURN(json["pre_tokenizer"], PreTokenizer(v.pre));
  json["normalizer"] = v.pre == "qwen2" ? Json{{"type", "NFC"}} : Json(nullptr);
  json["decoder"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  Json& model = json["model"];
  model["unk_token"] = nullptr;
  model["fuse_unk"] = false;
  model["byte_fallback"] = false;
  model["ignore_merges"] = false;
  for (const char* name : {"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"}) {
    if (v.pre == name) model["ignore_merges"] = true;
  }
  model["merges"] = v.merges;
  return absl::OkStatus();
}

void FillSentencePiece(const Vocabulary& v, Json& json) {
  const Json replace = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}};
  std::vector<Json> normalizers, decoders = {{{"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}},
                                             {{"type", "ByteFallback"}},
                                             {{"type", "Fuse"}}};
  if (v.space_prefix) {
    normalizers.push_back({{"type", "Prepend"}, {"prepend", kSpace}});
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  normalizers.push_back(replace);
  json["pre_tokenizer"] = nullptr;
  json["normalizer"] = Sequence("normalizers", normalizers);
  json["decoder"] = Sequence("decoders", decoders);
  Json& model = json["model"];
  model["unk_token"] = v.unknown >= 0 ? Json(v.tokens[static_cast<size_t>(v.unknown)]) : Json(nullptr);
  model["fuse_unk"] = true;
  model["byte_fallback"] = true;
  model["ignore_merges"] = false;
  model["merges"] = MergesFromScores(v);
}

Json TokenizerConfig(const Vocabulary& v) {
  Json out = {{"tokenizer_class", "PreTrainedTokenizerFast"},
              {"clean_up_tokenization_spaces", false},
              {"add_bos_token", v.add_bos},
              {"add_eos_token", v.add_eos}};
  const std::pair<const char*, int64_t> names[] = {
      {"bos_token", v.bos}, {"eos_token", v.eos}, {"unk_token", v.unknown}, {"pad_token", v.pad}};
  for (const auto& [name, id] : names) {
    if (id >= 0) out[name] = v.tokens[static_cast<size_t>(id)];
  }
  if (!v.tool_template.empty()) {
    out["chat_template"] = Json::array(
        {{{"name", "default"}, {"template", v.chat_template}}, {{"name", "tool_use"}, {"template", v.tool_template}}});
  } else if (!v.chat_template.empty()) {
    out["chat_template"] = v.chat_template;
  }
  return out;
}

}  // namespace

absl::StatusOr<std::map<std::string, std::string>> GgufTokenizerFilesFromMetadata(const Json& metadata) {
  std::map<std::string, std::string> out;
  if (!metadata.is_object() || !metadata.contains("tokenizer.ggml.tokens")) return out;
  SAGE_ASSIGN_OR_RETURN(const Vocabulary v, ReadVocabulary(metadata));
  if (v.tokens.empty()) return out;
  Json json = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
  json["added_tokens"] = AddedTokens(v);
  json["post_processor"] = PostProcessor(v);
  Json model = {
      {"type", "BPE"}, {"dropout", nullptr}, {"continuing_subword_prefix", nullptr}, {"end_of_word_suffix", nullptr}};
  SAGE_ASSIGN_OR_RETURN(model["vocab"], VocabularyObject(v));
  json["model"] = std::move(model);
  if (v.model == "gpt2") {
    SAGE_RETURN_IF_ERROR(FillByteLevel(v, json));
  } else if (v.model == "llama") {
    FillSentencePiece(v, json);
  } else {
    return Refuse(absl::StrCat("vocabulary kind must be gpt2 or llama, got '", v.model, "'"));
  }
  out["tokenizer.json"] = DumpJson(json, 1) + "\n";
  out["tokenizer_config.json"] = DumpJson(TokenizerConfig(v), 2) + "\n";
  return out;
}

absl::StatusOr<std::map<std::string, std::string>> GgufTokenizerFiles(const std::string& path) {
  SAGE_ASSIGN_OR_RETURN(const std::shared_ptr<GgufFile> file, GgufFile::Open(path));
  return GgufTokenizerFilesFromMetadata(file->metadata());
}

}  // namespace sage
