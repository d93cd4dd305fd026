// tokenizer.json, and vocab.json with merges.txt.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/tokenizer/loaders.h"
#include "engine/tokenizer/pattern.h"

namespace sage {
namespace {

constexpr const char* kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

const Json& Member(const Json& json, const char* key) {
  static const Json null;
  if (!json.is_object()) return null;
  const auto it = json.find(key);
  return it == json.end() ? null : *it;
}

absl::Status ReadVocab(const Json& vocab, Vocabulary& out) {
  if (!vocab.is_object()) return InvalidTokenizer("vocab must be an object of token to id");
  for (const auto& [text, id] : vocab.items()) {
    if (!id.is_number_unsigned())
      return InvalidTokenizer(absl::StrCat("vocab: ids are integers, at '", text.substr(0, 80), "'"));
    const uint64_t value = id.get<uint64_t>();
    SAGE_RETURN_IF_ERROR(
        out.Add(text, value > static_cast<uint64_t>(Vocabulary::kMaxId) ? -1 : static_cast<int64_t>(value)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::pair<std::string, std::string>> ParseMerge(std::string_view line) {
  const size_t blank = line.find(' ');
  if (blank == std::string_view::npos || line.find(' ', blank + 1) != std::string_view::npos) {
    return InvalidTokenizer(
        absl::StrCat("merges: one blank between two tokens, got '", std::string(line.substr(0, 80)), "'"));
  }
  return std::pair(std::string(line.substr(0, blank)), std::string(line.substr(blank + 1)));
}

absl::Status ReadMerges(const Json& merges, BpeModel& model) {
  if (!merges.is_array()) return InvalidTokenizer("merges must be an array");
  std::vector<std::pair<std::string, std::string>> pairs;
  pairs.reserve(merges.size());
  for (const Json& merge : merges) {
    if (merge.is_string()) {
      SAGE_ASSIGN_OR_RETURN(auto pair, ParseMerge(merge.get_ref<const std::string&>()));
      pairs.push_back(std::move(pair));
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      pairs.push_back({merge[0].get<std::string>(), merge[1].get<std::string>()});
    } else {
      return InvalidTokenizer("merges: each is \"a b\" or [\"a\", \"b\"]");
    }
  }
  return model.SetMerges(pairs);
}

absl::StatusOr<std::unique_ptr<SubwordModel>> ParseBpe(const Json& json) {
  auto model = std::make_unique<BpeModel>();
  SAGE_RETURN_IF_ERROR(ReadVocab(Member(json, "vocab"), model->vocabulary));
  SAGE_ASSIGN_OR_RETURN(model->unk_token, JsonString(json, "unk_token", ""));
  model->has_unk = Member(json, "unk_token").is_string();
  SAGE_ASSIGN_OR_RETURN(model->continuing_prefix, JsonString(json, "continuing_subword_prefix", ""));
  SAGE_ASSIGN_OR_RETURN(model->end_suffix, JsonString(json, "end_of_word_suffix", ""));
  SAGE_ASSIGN_OR_RETURN(model->fuse_unk, JsonBool(json, "fuse_unk", false));
  SAGE_ASSIGN_OR_RETURN(model->byte_fallback, JsonBool(json, "byte_fallback", false));
  SAGE_ASSIGN_OR_RETURN(model->ignore_merges, JsonBool(json, "ignore_merges", false));
  SAGE_RETURN_IF_ERROR(ReadMerges(Member(json, "merges"), *model));
  return model;
}

absl::StatusOr<std::unique_ptr<SubwordModel>> ParseUnigram(const Json& json) {
  auto model = std::make_unique<UnigramModel>();
  const Json& vocab = Member(json, "vocab");
  if (!vocab.is_array()) return InvalidTokenizer("Unigram vocab must be an array of [token, score]");
  std::vector<std::pair<std::string, int32_t>> pieces;
  for (const Json& entry : vocab) {
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number()) {
      return InvalidTokenizer("Unigram vocab must be an array of [token, score]");
    }
    const int64_t id = static_cast<int64_t>(model->scores.size());
    SAGE_RETURN_IF_ERROR(model->vocabulary.Add(entry[0].get_ref<const std::string&>(), id));
    pieces.push_back({entry[0].get<std::string>(), static_cast<int32_t>(id)});
    model->scores.push_back(entry[1].get<double>());
    model->min_score = id == 0 ? model->scores[0] : std::min(model->min_score, model->scores.back());
  }
  model->pieces = PrefixIndex(std::move(pieces));
  SAGE_ASSIGN_OR_RETURN(const int64_t unk, JsonInt(json, "unk_id", -1));
  if (unk < -1 || unk >= static_cast<int64_t>(model->scores.size()))
    return InvalidTokenizer("Unigram unk_id must be in the vocab");
  model->unk_id = static_cast<int32_t>(unk);
  SAGE_ASSIGN_OR_RETURN(model->byte_fallback, JsonBool(json, "byte_fallback", false));
  return model;
}

absl::StatusOr<std::unique_ptr<SubwordModel>> ParseModel(const Json& json) {
  if (!json.is_object()) return InvalidTokenizer("model must be an object");
  SAGE_ASSIGN_OR_RETURN(std::string type, JsonString(json, "type", ""));
  if (type.empty()) type = json.contains("merges") ? "BPE" : json.contains("unk_id") ? "Unigram" : "WordPiece";
  if (type == "BPE") return ParseBpe(json);
  if (type == "Unigram") return ParseUnigram(json);
  if (type != "WordPiece") return UnknownComponent("model", type);
  auto model = std::make_unique<WordPieceModel>();
  SAGE_RETURN_IF_ERROR(ReadVocab(Member(json, "vocab"), model->vocabulary));
  SAGE_ASSIGN_OR_RETURN(model->unk_token, JsonString(json, "unk_token", "[UNK]"));
  SAGE_ASSIGN_OR_RETURN(model->continuing_prefix, JsonString(json, "continuing_subword_prefix", "##"));
  SAGE_ASSIGN_OR_RETURN(model->max_chars, JsonInt(json, "max_input_chars_per_word", 100));
  return model;
}

absl::StatusOr<AddedToken> ParseAdded(const Json& json) {
  if (!json.is_object()) return InvalidTokenizer("added tokens must be objects");
  AddedToken token;
  SAGE_ASSIGN_OR_RETURN(token.content, JsonString(json, "content", ""));
  SAGE_ASSIGN_OR_RETURN(token.special, JsonBool(json, "special", false));
  SAGE_ASSIGN_OR_RETURN(token.single_word, JsonBool(json, "single_word", false));
  SAGE_ASSIGN_OR_RETURN(token.lstrip, JsonBool(json, "lstrip", false));
  SAGE_ASSIGN_OR_RETURN(token.rstrip, JsonBool(json, "rstrip", false));
  SAGE_ASSIGN_OR_RETURN(token.normalized, JsonBool(json, "normalized", !token.special));
  return token;
}

absl::Status ParseTemplate(const Json& json, PipelineTokenizer& out) {
  const Json& single = Member(json, "single");
  if (!single.is_array()) return InvalidTokenizer("TemplateProcessing: single must be an array");
  bool after = false;
  for (const Json& piece : single) {
    if (piece.is_object() && piece.contains("Sequence")) {
      after = true;
      continue;
    }
    SAGE_ASSIGN_OR_RETURN(
        const std::string name,
        JsonString(Member(piece, "SpecialToken").is_object() ? piece["SpecialToken"] : Json::object(), "id", ""));
    const Json& ids = Member(Member(Member(json, "special_tokens"), name.c_str()), "ids");
    if (!ids.is_array())
      return InvalidTokenizer(absl::StrCat("TemplateProcessing: special_tokens must list '", name, "'"));
    for (const Json& id : ids) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() > static_cast<uint64_t>(Vocabulary::kMaxId)) {
        return InvalidTokenizer("TemplateProcessing: ids are vocabulary ids");
      }
      (after ? out.suffix_ids : out.prefix_ids).push_back(id.get<int32_t>());
    }
  }
  return absl::OkStatus();
}

absl::Status ParsePostProcessor(const Json& json, PipelineTokenizer& out) {
  if (json.is_null()) return absl::OkStatus();
  std::vector<const Json*> flat;
  SAGE_RETURN_IF_ERROR(FlattenSequence(json, "processors", flat));
  for (const Json* one : flat) {
    SAGE_ASSIGN_OR_RETURN(const std::string type, JsonString(*one, "type", ""));
    if (type == "TemplateProcessing") {
      SAGE_RETURN_IF_ERROR(ParseTemplate(*one, out));
    } else if (type == "RobertaProcessing" || type == "BertProcessing") {
      for (const char* key : {"cls", "sep"}) {
        const Json& pair = Member(*one, key);
        if (!pair.is_array() || pair.size() != 2 || !pair[1].is_number_unsigned())
          return InvalidTokenizer("cls and sep are [token, id]");
        if (pair[1].get<uint64_t>() > static_cast<uint64_t>(Vocabulary::kMaxId))
          return InvalidTokenizer("cls and sep ids are vocabulary ids");
        (key[0] == 'c' ? out.prefix_ids : out.suffix_ids).push_back(pair[1].get<int32_t>());
      }
    } else if (type != "ByteLevel") {
      return UnknownComponent("post_processor", type);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status InvalidTokenizer(std::string_view message) {
  return MakeError(absl::StatusCode::kInvalidArgument, "TOKENIZER_INVALID",
                   absl::StrCat("tokenizer: ", std::string(message)));
}

absl::StatusOr<PipelinePtr> ParseTokenizerJson(const Json& json) {
  if (!json.is_object()) return InvalidTokenizer("tokenizer.json must be an object");
  auto out = std::make_shared<PipelineTokenizer>();
  SAGE_ASSIGN_OR_RETURN(out->model, ParseModel(Member(json, "model")));
  SAGE_ASSIGN_OR_RETURN(out->normalizers, ParseNormalizers(Member(json, "normalizer")));
  SAGE_ASSIGN_OR_RETURN(out->pre_tokenizers, ParsePreTokenizers(Member(json, "pre_tokenizer")));
  SAGE_ASSIGN_OR_RETURN(out->decoder, ParseTokenDecoder(Member(json, "decoder")));
  SAGE_RETURN_IF_ERROR(ParsePostProcessor(Member(json, "post_processor"), *out));
  std::vector<AddedToken> added;
  const Json& list = Member(json, "added_tokens");
  if (!list.is_null() && !list.is_array()) return InvalidTokenizer("added_tokens must be an array");
  for (const Json& one : list) {
    SAGE_ASSIGN_OR_RETURN(AddedToken token, ParseAdded(one));
    added.push_back(std::move(token));
  }
  SAGE_RETURN_IF_ERROR(out->AddTokens(added));
  SAGE_RETURN_IF_ERROR(out->Finish());
  out->kind_name = out->model->name();
  return out;
}

absl::StatusOr<PipelinePtr> ParseVocabMerges(const Json& vocab, std::string_view merges, const Json& config) {
  auto out = std::make_shared<PipelineTokenizer>();
  auto model = std::make_unique<BpeModel>();
  SAGE_RETURN_IF_ERROR(ReadVocab(vocab, model->vocabulary));
  std::vector<std::pair<std::string, std::string>> pairs;
  while (!merges.empty()) {
    const size_t end = merges.find('\n');
    std::string_view line = merges.substr(0, end);
    merges.remove_prefix(end == std::string_view::npos ? merges.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with("#version")) continue;
    SAGE_ASSIGN_OR_RETURN(auto pair, ParseMerge(line));
    pairs.push_back(std::move(pair));
  }
  SAGE_RETURN_IF_ERROR(model->SetMerges(pairs));
  out->model = std::move(model);
  const Json empty = Json::object();
  const Json& settings = config.is_object() ? config : empty;
  SAGE_ASSIGN_OR_RETURN(const std::string type, JsonString(settings, "tokenizer_class", ""));
  SAGE_ASSIGN_OR_RETURN(const bool prefix, JsonBool(settings, "add_prefix_space", false));
  if (type.rfind("Qwen2", 0) == 0) {
    out->normalizers.push_back(MakeNfc());
    out->pre_tokenizers.push_back(MakeSplit(*Regex::Compile(kQwen2Pattern), SplitBehavior::kIsolated, false));
    out->pre_tokenizers.push_back(MakeByteLevel(prefix, false));
  } else {
    out->pre_tokenizers.push_back(MakeByteLevel(prefix, true));
  }
  out->decoder.steps.push_back({DecodeStep::Kind::kByteLevel, nullptr, "", 0, 0, false});
  std::vector<AddedToken> added;
  const Json& decoder = Member(settings, "added_tokens_decoder");
  for (const auto& [key, value] : decoder.items()) {
    SAGE_ASSIGN_OR_RETURN(AddedToken token, ParseAdded(value));
    if (key.empty() || key.size() > 8 || key.find_first_not_of("0123456789") != std::string::npos) {
      return InvalidTokenizer("added_tokens_decoder: keys are ids");
    }
    token.id = std::stoi(key);
    added.push_back(std::move(token));
  }
  std::sort(added.begin(), added.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  if (added.empty() && out->model->vocabulary.Find("<|endoftext|>")) {
    AddedToken token;
    token.content = "<|endoftext|>";
    token.special = true;
    added.push_back(token);
  }
  SAGE_RETURN_IF_ERROR(out->AddTokens(added));
  SAGE_RETURN_IF_ERROR(out->Finish());
  out->kind_name = "bpe";
  return out;
}

}  // namespace sage
