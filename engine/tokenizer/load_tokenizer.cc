// Finds the tokenizer of a model folder or GGUF file, its chat template and its special tokens.
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/tensor/gguf_file.h"
#include "engine/tokenizer/loaders.h"

namespace sage {
namespace {

constexpr size_t kMaxTemplateBytes = 4u << 20;

// Reads files of one folder and hashes what was read.
class Folder {
 public:
  explicit Folder(const std::string& path) : path_(path) {}
  bool Has(const char* name) const { return FileExists(absl::StrCat(path_, "/", name)); }
  absl::StatusOr<std::string> Read(const char* name, size_t max_bytes = 512u << 20) {
    SAGE_ASSIGN_OR_RETURN(std::string text, ReadFile(absl::StrCat(path_, "/", name), max_bytes));
    sha_.Update(name, std::char_traits<char>::length(name) + 1);
    sha_.Update(text.data(), text.size());
    return text;
  }
  absl::StatusOr<Json> ReadJson(const char* name) {
    SAGE_ASSIGN_OR_RETURN(const std::string text, Read(name));
    return ParseJson(text, name);
  }
  std::string Fingerprint() { return sha_.HexDigest(); }

 private:
  std::string path_;
  Sha256 sha_;
};

// The one file of a folder without a model (no config.json) whose name begins and ends like this; "" when there are
// none or several.
std::string OnlyFile(const std::string& path, const std::string& prefix, const std::string& suffix) {
  if (!IsDirectory(path) || FileExists(path + "/config.json")) return "";
  std::string found;
  std::error_code error;
  for (std::filesystem::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with(prefix) || !name.ends_with(suffix)) continue;
    if (!found.empty()) return "";
    found = name;
  }
  return found;
}

absl::StatusOr<PipelinePtr> ReadPipeline(Folder& folder, const Json& config, const std::string& path) {
  if (folder.Has("tokenizer.json")) {
    SAGE_ASSIGN_OR_RETURN(const Json json, folder.ReadJson("tokenizer.json"));
    return ParseTokenizerJson(json);
  }
  if (folder.Has("vocab.json") && folder.Has("merges.txt")) {
    SAGE_ASSIGN_OR_RETURN(const Json vocab, folder.ReadJson("vocab.json"));
    SAGE_ASSIGN_OR_RETURN(const std::string merges, folder.Read("merges.txt"));
    return ParseVocabMerges(vocab, merges, config);
  }
  if (folder.Has("tokenizer.model")) {
    SAGE_ASSIGN_OR_RETURN(const std::string bytes, folder.Read("tokenizer.model"));
    return ParseSentencePiece(bytes, config);
  }
  if (folder.Has("tokenizer.bin")) {
    SAGE_ASSIGN_OR_RETURN(const std::string bytes, folder.Read("tokenizer.bin"));
    return ParseLlama2c(bytes);
  }
  if (const std::string model = OnlyFile(path, "", ".model"); !model.empty()) {
    SAGE_ASSIGN_OR_RETURN(const std::string bytes, folder.Read(model.c_str()));
    return ParseSentencePiece(bytes, config);
  }
  if (const std::string bin = OnlyFile(path, "tok", ".bin"); !bin.empty()) {
    SAGE_ASSIGN_OR_RETURN(const std::string bytes, folder.Read(bin.c_str()));
    return ParseLlama2c(bytes);
  }
  return MakeError(
      absl::StatusCode::kNotFound, "TOKENIZER_NOT_FOUND",
      absl::StrCat("model folder: must hold tokenizer.json, vocab.json with merges.txt, tokenizer.model or "
                   "tokenizer.bin, or without config.json one *.model or tok*.bin, got ",
                   path));
}

// "bos_token" is a string or an object with "content".
std::string TokenText(const Json& config, const char* key) {
  const auto it = config.is_object() ? config.find(key) : config.end();
  if (!config.is_object() || it == config.end()) return "";
  if (it->is_string()) return it->get<std::string>();
  if (it->is_object() && it->contains("content") && (*it)["content"].is_string())
    return (*it)["content"].get<std::string>();
  return "";
}

// The template of a name; a text alone is the "default" one.
std::string TemplateText(const Json& config, const char* name) {
  if (!config.is_object() || !config.contains("chat_template")) return "";
  const Json& value = config["chat_template"];
  if (value.is_string()) return std::string_view(name) == "default" ? value.get<std::string>() : "";
  if (!value.is_array()) return "";
  for (const Json& one : value) {
    if (one.is_object() && one.value("name", Json()) == name && one.contains("template") &&
        one["template"].is_string()) {
      return one["template"].get<std::string>();
    }
  }
  return "";
}

// The file's name for the token decides; what the format itself says stays where it has none.
void NameSpecial(PipelineTokenizer& tokenizer, std::string& text, std::optional<int32_t>& id) {
  if (!text.empty()) {
    if (const auto found = tokenizer.TokenToId(text)) id = found;
  } else if (id) {
    text = tokenizer.IdToToken(*id).value_or("");
  }
}

// The GGUF of a folder that is nothing else: one .gguf and no config.json, as the checkpoint format reads it.
std::string OnlyGguf(const std::string& path) {
  if (!IsDirectory(path) || FileExists(path + "/config.json") || FileExists(path + "/tokenizer.json")) return "";
  std::string found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
    if (entry.path().extension() != ".gguf") continue;
    if (!found.empty()) return "";
    found = entry.path().string();
  }
  return found;
}

}  // namespace

absl::StatusOr<TokenizerFiles> LoadTokenizer(const std::string& path) {
  const std::string gguf = path.ends_with(".gguf") ? path : OnlyGguf(path);
  if (!gguf.empty()) {
    SAGE_ASSIGN_OR_RETURN(const auto file, GgufFile::Open(gguf));
    SAGE_ASSIGN_OR_RETURN(TokenizerFiles files, LoadGgufTokenizer(file->metadata()));
    SAGE_ASSIGN_OR_RETURN(files.fingerprint, Sha256File(gguf));
    return files;
  }
  Folder folder(path);
  Json config;
  if (folder.Has("tokenizer_config.json")) {
    SAGE_ASSIGN_OR_RETURN(config, folder.ReadJson("tokenizer_config.json"));
  }
  SAGE_ASSIGN_OR_RETURN(PipelinePtr pipeline, ReadPipeline(folder, config, path));
  TokenizerFiles files;
  files.bos_token = TokenText(config, "bos_token");
  files.eos_token = TokenText(config, "eos_token");
  NameSpecial(*pipeline, files.bos_token, pipeline->bos);
  NameSpecial(*pipeline, files.eos_token, pipeline->eos);
  if (folder.Has("chat_template.jinja")) {
    SAGE_ASSIGN_OR_RETURN(files.chat_template, folder.Read("chat_template.jinja", kMaxTemplateBytes));
  } else {
    files.chat_template = TemplateText(config, "default");
    files.tool_template = TemplateText(config, "tool_use");
  }
  files.fingerprint = folder.Fingerprint();
  files.tokenizer = std::move(pipeline);
  return files;
}

}  // namespace sage
