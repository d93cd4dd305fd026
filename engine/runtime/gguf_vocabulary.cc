// Reads a folder's tokenizer files as JSON and pieces, and says them in llama.cpp's keys.
#include "engine/runtime/gguf_vocabulary.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/runtime/gguf_pre_tokenizer.h"
#include "engine/tokenizer/piece_files.h"
#include "engine/tokenizer/tokenizer.h"

namespace sage {
namespace {

constexpr char kSpace[] = "\xe2\x96\x81";

struct Words {
  std::string model, pre = "default";
  std::vector<std::string> tokens, merges;
  std::vector<float> scores;
  std::vector<int32_t> types;
  bool space_prefix = true;

  void Put(int64_t id, const std::string& text, PieceKind kind, float score = 0) {
    const size_t at = static_cast<size_t>(id);
    if (at >= tokens.size()) {
      tokens.resize(at + 1);
      scores.resize(at + 1, 0.0f);
      types.resize(at + 1, static_cast<int32_t>(PieceKind::kUnused));
    }
    tokens[at] = text;
    types[at] = static_cast<int32_t>(kind);
    scores[at] = score;
  }
};

absl::Status Refuse(const std::string& message) {
  return MakeError(absl::StatusCode::kUnimplemented, "GGUF_TOKENIZER", absl::StrCat("GGUF tokenizer: ", message));
}

absl::StatusOr<Json> ReadJson(const std::string& path) {
  SAGE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseJson(text, path);
}

absl::Status CheckId(int64_t id, int64_t V) {
  if (id >= 0 && id < V) return absl::OkStatus();
  return Refuse(absl::StrCat("ids must lie in the ", V, " rows of the embeddings, got ", id));
}

absl::Status PutVocab(const Json& vocab, int64_t V, Words& words) {
  if (!vocab.is_object()) return Refuse("vocab must be an object of token to id");
  for (const auto& [text, id] : vocab.items()) {
    const int64_t value = id.is_number_integer() ? id.get<int64_t>() : -1;
    SAGE_RETURN_IF_ERROR(CheckId(value, V));
    words.Put(value, text, PieceKind::kNormal);
  }
  return absl::OkStatus();
}

absl::Status PutAdded(int64_t id, const Json& token, int64_t V, Words& words) {
  SAGE_RETURN_IF_ERROR(CheckId(id, V));
  SAGE_ASSIGN_OR_RETURN(const std::string content, JsonString(token, "content", ""));
  SAGE_ASSIGN_OR_RETURN(const bool special, JsonBool(token, "special", false));
  words.Put(id, content, special ? PieceKind::kControl : PieceKind::kUserDefined);
  return absl::OkStatus();
}

absl::Status PutMerges(const Json& merges, Words& words) {
  if (!merges.is_array()) return Refuse("merges must be an array");
  for (const Json& merge : merges) {
    if (merge.is_string()) {
      words.merges.push_back(merge.get<std::string>());
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      words.merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
    } else {
      return Refuse("a merge must be two texts");
    }
  }
  return absl::OkStatus();
}

// SentencePiece in tokenizer.json: merges ranked by the scores they came from become scores again.
absl::Status ScoresFromMerges(const Json& json, Words& words) {
  std::map<std::string, float> rank;
  for (size_t i = 0; i < words.merges.size(); ++i) {
    std::string piece = words.merges[i];
    const size_t blank = piece.find(' ', 1);
    if (blank == piece.npos) return Refuse("a merge must be two texts");
    piece.erase(blank, 1);
    rank.emplace(std::move(piece), -static_cast<float>(i + 1));
  }
  SAGE_ASSIGN_OR_RETURN(const std::string unknown, JsonString(json["model"], "unk_token", ""));
  const float last = -static_cast<float>(words.merges.size() + 1);
  for (size_t i = 0; i < words.tokens.size(); ++i) {
    const std::string& text = words.tokens[i];
    const bool byte = text.size() == 6 && text.compare(0, 3, "<0x") == 0 && text.back() == '>';
    const auto it = rank.find(text);
    if (byte) words.types[i] = static_cast<int32_t>(PieceKind::kByte);
    if (text == unknown && !unknown.empty()) words.types[i] = static_cast<int32_t>(PieceKind::kUnknown);
    const bool plain = words.types[i] == static_cast<int32_t>(PieceKind::kNormal);
    words.scores[i] = it != rank.end() ? it->second : plain ? last : 0.0f;
  }
  words.merges.clear();
  return absl::OkStatus();
}

absl::StatusOr<Words> FromTokenizerJson(const std::string& path, int64_t V) {
  SAGE_ASSIGN_OR_RETURN(const Json json, ReadJson(path + "/tokenizer.json"));
  if (!json.is_object() || !json.contains("model") || !json["model"].is_object()) {
    return Refuse("tokenizer.json must have a model");
  }
  const Json& model = json["model"];
  SAGE_ASSIGN_OR_RETURN(const std::string type, JsonString(model, "type", model.contains("merges") ? "BPE" : ""));
  if (type != "BPE") return Refuse(absl::StrCat("the model of tokenizer.json must be BPE, got '", type, "'"));
  SAGE_ASSIGN_OR_RETURN(const bool bytes, JsonBool(model, "byte_fallback", false));
  Words words;
  words.model = bytes ? "llama" : "gpt2";
  SAGE_RETURN_IF_ERROR(PutVocab(model.value("vocab", Json()), V, words));
  SAGE_RETURN_IF_ERROR(PutMerges(model.value("merges", Json()), words));
  const Json added = json.value("added_tokens", Json::array());
  for (const Json& token : added.is_array() ? added : Json::array()) {
    if (!token.is_object()) return Refuse("added_tokens must be objects");
    SAGE_ASSIGN_OR_RETURN(const int64_t id, JsonInt(token, "id", -1));
    SAGE_RETURN_IF_ERROR(PutAdded(id, token, V, words));
  }
  if (bytes) {
    words.space_prefix = DumpJson(json.value("normalizer", Json())).find("\"Prepend\"") != std::string::npos;
    SAGE_RETURN_IF_ERROR(ScoresFromMerges(json, words));
    return words;
  }
  SAGE_ASSIGN_OR_RETURN(words.pre, GgufPreTokenizer(json));
  return words;
}

absl::StatusOr<Words> FromVocabMerges(const std::string& path, const Json& config, int64_t V) {
  Words words;
  words.model = "gpt2";
  SAGE_ASSIGN_OR_RETURN(const std::string type, JsonString(config, "tokenizer_class", ""));
  words.pre = type.rfind("Qwen2", 0) == 0 ? "qwen2" : "gpt-2";
  SAGE_ASSIGN_OR_RETURN(const Json vocab, ReadJson(path + "/vocab.json"));
  SAGE_RETURN_IF_ERROR(PutVocab(vocab, V, words));
  SAGE_ASSIGN_OR_RETURN(const std::string merges, ReadFile(path + "/merges.txt"));
  for (const auto& line : absl::StrSplit(merges, '\n')) {
    const std::string text(line.data(), line.size());
    if (!text.empty() && text.rfind("#version", 0) != 0) words.merges.push_back(text);
  }
  const Json added = config.value("added_tokens_decoder", Json::object());
  if (!added.is_object()) return words;
  for (const auto& [id, token] : added.items()) {
    if (!token.is_object() || id.empty() || id.size() > 9 || id.find_first_not_of("0123456789") != id.npos) {
      return Refuse("added_tokens_decoder must be an object of id to token");
    }
    SAGE_RETURN_IF_ERROR(PutAdded(std::stoll(id), token, V, words));
  }
  return words;
}

absl::StatusOr<Words> FromPieces(const std::vector<ScoredPiece>& pieces, int64_t V) {
  Words words;
  words.model = "llama";
  for (size_t i = 0; i < pieces.size(); ++i) {
    SAGE_RETURN_IF_ERROR(CheckId(static_cast<int64_t>(i), V));
    words.Put(static_cast<int64_t>(i), pieces[i].text, pieces[i].kind, pieces[i].score);
  }
  return words;
}

absl::StatusOr<Words> ReadWords(const std::string& path, const Json& config, int64_t V) {
  const auto has = [&](const char* name) { return FileExists(absl::StrCat(path, "/", name)); };
  if (has("tokenizer.json")) return FromTokenizerJson(path, V);
  if (has("vocab.json") && has("merges.txt")) return FromVocabMerges(path, config, V);
  const bool sentences = has("tokenizer.model");
  SAGE_ASSIGN_OR_RETURN(const std::string bytes,
                        ReadFile(absl::StrCat(path, "/", sentences ? "tokenizer.model" : "tokenizer.bin")));
  absl::StatusOr<std::vector<ScoredPiece>> pieces = sentences ? ReadSentencePieces(bytes) : ReadLlama2cPieces(bytes);
  if (!pieces.ok()) return pieces.status();
  if (!sentences) {  // that file spells the space as it is
    for (ScoredPiece& piece : *pieces) {
      std::string text;
      for (const char c : piece.text) text += c == ' ' ? std::string(kSpace) : std::string(1, c);
      piece.text = std::move(text);
    }
  }
  return FromPieces(*pieces, V);
}

// Keys of a GGUF source, with the types that llama.cpp gives them.
void CopyKeys(const Json& metadata, GgufKeys& keys) {
  for (const auto& [key, value] : metadata.items()) {
    if (key.rfind("tokenizer.", 0) != 0) continue;
    if (value.is_string()) keys.AddString(key, value.get<std::string>());
    if (value.is_boolean()) keys.AddBool(key, value.get<bool>());
    if (value.is_number_unsigned()) keys.AddU32(key, value.get<uint32_t>());
    if (value.is_number_integer() && !value.is_number_unsigned()) keys.AddI32(key, value.get<int32_t>());
    if (value.is_number_float()) keys.AddF32(key, value.get<float>());
    if (!value.is_array() || value.empty()) continue;
    const auto all = [&array = value](auto is) { return std::all_of(array.begin(), array.end(), is); };
    if (all([](const Json& v) { return v.is_string(); })) keys.AddStrings(key, value.get<std::vector<std::string>>());
    if (all([](const Json& v) { return v.is_number_integer(); })) keys.AddI32s(key, value.get<std::vector<int32_t>>());
    if (all([](const Json& v) { return v.is_number_float(); })) keys.AddF32s(key, value.get<std::vector<float>>());
  }
}

// What the ids of a text look like with both tokenizers, over scripts, blanks, digits and special tokens.
absl::Status CompareTokenizers(const TokenizerFiles& source, const GgufKeys& keys) {
  SAGE_ASSIGN_OR_RETURN(const std::string bytes, GgufBeginning(keys, {}));
  SAGE_ASSIGN_OR_RETURN(const std::shared_ptr<GgufFile> file,
                        GgufFile::Parse(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), "GGUF to write"));
  SAGE_ASSIGN_OR_RETURN(const TokenizerFiles written, LoadGgufTokenizer(file->metadata()));
  const std::string special = source.bos_token + "Hello" + source.eos_token + "\n";
  for (const std::string& text :
       {std::string("Hello world"), std::string(" The quick brown fox, 12345 times (3.14%)!"),
        std::string("def f(x):\n\treturn x**2  # two  blanks\n\n\n"), std::string("It's we'll CAN'T isn't I'd"),
        std::string("caf\xc3\xa9 na\xc3\xafve \xc3\x9c\x62\x65r \xd0\x9f\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82"),
        std::string(
            "\xe4\xbd\xa0\xe5\xa5\xbd\xef\xbc\x8c\xe4\xb8\x96\xe7\x95\x8c\xe3\x80\x82 \xed\x95\x9c\xea\xb5\xad"),
        std::string("\xf0\x9f\x9a\x80 \xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x94\xac x"), std::string("a"),
        std::string("https://example.org/?q=1&r=2_3-4 ~{}[]|\\"), special}) {
    for (const bool add : {false, true}) {
      SAGE_ASSIGN_OR_RETURN(const std::vector<int32_t> a, source.tokenizer->Encode(text, add));
      SAGE_ASSIGN_OR_RETURN(const std::vector<int32_t> b, written.tokenizer->Encode(text, add));
      if (a != b)
        return Refuse(absl::StrCat("the vocabulary as GGUF gives other ids than the source for \"", text, "\""));
    }
  }
  return absl::OkStatus();
}

// Which ids the source puts around a text, seen on one.
absl::Status AddSpecialKeys(const ArtifactSource& source, const TokenizerFiles& files, const Json& config,
                            GgufKeys& keys, std::vector<std::string>& notes) {
  const Tokenizer& tokenizer = *files.tokenizer;
  SAGE_ASSIGN_OR_RETURN(const std::vector<int32_t> plain, tokenizer.Encode("a", false));
  SAGE_ASSIGN_OR_RETURN(const std::vector<int32_t> whole, tokenizer.Encode("a", true));
  const auto bos = tokenizer.bos_id(), eos = tokenizer.eos_id();
  const size_t more = whole.size() - std::min(whole.size(), plain.size());
  const bool add_bos = more > 0 && bos && !whole.empty() && whole.front() == *bos;
  const bool add_eos = more > (add_bos ? 1u : 0u) && eos && whole.back() == *eos;
  const int64_t V = source.config().V;
  const auto add = [&](const char* key, int64_t id) {
    if (id >= 0 && id < V) keys.AddU32(absl::StrCat("tokenizer.ggml.", key, "_token_id"), static_cast<uint32_t>(id));
  };
  const std::vector<int32_t>& ends = source.config().eos_ids;
  const int64_t end = eos ? *eos : ends.empty() ? -1 : ends[0];
  add("bos", bos ? *bos : source.config().bos_id);
  add("eos", end);
  int64_t turn = -1;
  for (const int32_t id : ends) {
    if (id == end) continue;
    if (turn >= 0) notes.push_back(absl::StrCat("generation_config: end token ", id, " has no key in a GGUF"));
    if (turn < 0) turn = id;
  }
  add("eot", turn);
  for (const auto& [key, name] : {std::pair("unknown", "unk_token"), std::pair("padding", "pad_token")}) {
    const auto it = config.find(name);
    std::string text;
    if (it != config.end() && it->is_string()) text = it->get<std::string>();
    if (it != config.end() && it->is_object() && it->contains("content") && (*it)["content"].is_string()) {
      text = (*it)["content"].get<std::string>();
    }
    const auto id = text.empty() ? std::nullopt : tokenizer.TokenToId(text);
    if (id) add(key, *id);
  }
  keys.AddBool("tokenizer.ggml.add_bos_token", add_bos);
  keys.AddBool("tokenizer.ggml.add_eos_token", add_eos);
  if (!files.chat_template.empty()) keys.AddString("tokenizer.chat_template", files.chat_template);
  if (!files.tool_template.empty()) {  // llama.cpp lists the names beside the templates
    keys.AddStrings("tokenizer.chat_templates", {"tool_use"});
    keys.AddString("tokenizer.chat_template.tool_use", files.tool_template);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status AddTokenizerKeys(const ArtifactSource& source, GgufKeys& keys, std::vector<std::string>& notes) {
  const std::string path = source.checkpoint().path();
  if (source.is_gguf()) {
    SAGE_ASSIGN_OR_RETURN(const std::shared_ptr<GgufFile> file, GgufFile::Open(path));
    CopyKeys(file->metadata(), keys);
    if (!keys.Has("tokenizer.ggml.model")) keys.AddString("tokenizer.ggml.model", "none");
    return absl::OkStatus();
  }
  const absl::StatusOr<TokenizerFiles> files = LoadTokenizer(path);
  if (!files.ok()) {
    if (!absl::IsNotFound(files.status())) return files.status();
    keys.AddString("tokenizer.ggml.model", "none");
    notes.push_back("the source has no tokenizer: the file has none either");
    return absl::OkStatus();
  }
  Json config = Json::object();
  if (FileExists(path + "/tokenizer_config.json")) {
    SAGE_ASSIGN_OR_RETURN(config, ReadJson(path + "/tokenizer_config.json"));
    if (!config.is_object()) return Refuse("tokenizer_config.json must be an object");
  }
  const int64_t V = source.config().V;
  SAGE_ASSIGN_OR_RETURN(Words words, ReadWords(path, config, V));
  const size_t known = words.tokens.size();
  if (static_cast<int64_t>(known) < V) words.Put(V - 1, "", PieceKind::kUnused);
  for (size_t i = 0; i < words.tokens.size(); ++i) {
    if (words.tokens[i].empty() && words.types[i] == static_cast<int32_t>(PieceKind::kUnused)) {
      words.tokens[i] = absl::StrCat("[PAD", i, "]");
    }
  }
  keys.AddString("tokenizer.ggml.model", words.model);
  keys.AddString("tokenizer.ggml.pre", words.pre);
  keys.AddStrings("tokenizer.ggml.tokens", words.tokens);
  keys.AddI32s("tokenizer.ggml.token_type", words.types);
  if (words.model == "llama") {
    keys.AddF32s("tokenizer.ggml.scores", words.scores);
    keys.AddBool("tokenizer.ggml.add_space_prefix", words.space_prefix);
  } else {
    keys.AddStrings("tokenizer.ggml.merges", words.merges);
  }
  SAGE_RETURN_IF_ERROR(AddSpecialKeys(source, *files, config, keys, notes));
  return CompareTokenizers(*files, keys);
}

}  // namespace sage
