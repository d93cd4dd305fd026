// Reads calibration and evaluation text: decides the kind of file, checks every line, tokenises on demand.
#include "engine/runtime/dataset.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/unicode.h"

namespace sage {
namespace {

constexpr int64_t kMaxEntries = 10'000'000;
constexpr size_t kMaxLineBytes = size_t{64} << 20;

absl::Status Invalid(std::string_view name, int64_t line, std::string_view rule) {
  return MakeError(absl::StatusCode::kInvalidArgument, "DATASET_INVALID",
                   absl::StrCat("dataset ", std::string(name), " line ", line, ": ", std::string(rule)),
                   {{"line", absl::StrCat(line)}});
}

absl::StatusOr<std::vector<int32_t>> ReadIds(const Json& array, std::string_view name, int64_t line) {
  std::vector<int32_t> ids;
  ids.reserve(array.size());
  for (const Json& value : array) {
    if (!value.is_number_integer() && !value.is_number_unsigned()) {
      return Invalid(name, line, absl::StrCat("token ids must be integers, got ", value.type_name()));
    }
    const bool fits = value.is_number_unsigned() ? value.get<uint64_t>() <= INT32_MAX
                                                 : value.get<int64_t>() >= 0 && value.get<int64_t>() <= INT32_MAX;
    if (!fits) return Invalid(name, line, "token ids must be in [0, 2^31)");
    ids.push_back(static_cast<int32_t>(value.get<int64_t>()));
  }
  if (ids.empty()) return Invalid(name, line, "an array of ids must not be empty");
  return ids;
}

absl::Status CheckMessages(const OrderedJson& messages, std::string_view name, int64_t line) {
  if (!messages.is_array() || messages.empty()) return Invalid(name, line, "'messages' must be a non-empty array");
  for (const OrderedJson& message : messages) {
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string() ||
        !message.contains("content")) {
      return Invalid(name, line, "each message must be an object with 'role' and 'content'");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<DatasetEntry> ReadObject(std::string_view text, const Json& object, std::string_view name,
                                        std::string_view field, int64_t line) {
  DatasetEntry entry;
  entry.line = line;
  const std::string wanted(field.empty() ? "text" : field);
  for (const std::string& key :
       field.empty() ? std::vector<std::string>{"text", "inputs_pretokenized"} : std::vector<std::string>{wanted}) {
    const auto it = object.find(key);
    if (it == object.end() || it->is_null()) continue;
    if (it->is_array() && !field.empty() && key != "messages") {
      SAGE_ASSIGN_OR_RETURN(entry.ids, ReadIds(*it, name, line));
      return entry;
    }
    if (key == "messages") break;
    if (!it->is_string())
      return Invalid(name, line, absl::StrCat("'", key, "' must be a string, got ", it->type_name()));
    entry.text = it->get<std::string>();
    if (entry.text.empty()) return Invalid(name, line, absl::StrCat("'", key, "' must not be empty"));
    return entry;
  }
  if ((field.empty() || field == "messages") && object.contains("messages")) {
    SAGE_ASSIGN_OR_RETURN(const OrderedJson ordered, ParseOrderedJson(text, name));
    entry.messages = ordered["messages"];
    SAGE_RETURN_IF_ERROR(CheckMessages(entry.messages, name, line));
    return entry;
  }
  for (const char* key : {"input_ids", "token_ids", "ids"}) {
    if (!field.empty() || !object.contains(key)) continue;
    if (!object[key].is_array()) return Invalid(name, line, absl::StrCat("'", key, "' must be an array"));
    SAGE_ASSIGN_OR_RETURN(entry.ids, ReadIds(object[key], name, line));
    return entry;
  }
  return Invalid(name, line,
                 absl::StrCat("must have a member '", wanted, "'",
                              field.empty() ? ", 'messages', 'inputs_pretokenized' or 'input_ids'" : "", ", got none"));
}

absl::StatusOr<DatasetEntry> ReadLine(std::string_view text, std::string_view name, std::string_view field,
                                      int64_t line) {
  if (text.size() > kMaxLineBytes)
    return Invalid(name, line, absl::StrCat("must be at most ", kMaxLineBytes, " bytes"));
  absl::StatusOr<Json> value = ParseJson(text, "JSON");
  if (!value.ok()) return Invalid(name, line, std::string(value.status().message()));
  if (value->is_object()) return ReadObject(text, *value, name, field, line);
  if (value->is_array()) {
    DatasetEntry entry;
    entry.line = line;
    SAGE_ASSIGN_OR_RETURN(entry.ids, ReadIds(*value, name, line));
    return entry;
  }
  return Invalid(name, line, absl::StrCat("must be an object or an array of ids, got ", value->type_name()));
}

bool EndsWith(std::string_view text, std::string_view tail) {
  return text.size() >= tail.size() && text.substr(text.size() - tail.size()) == tail;
}

bool IsBlank(std::string_view text) { return text.find_first_not_of(" \t\r\n") == text.npos; }

// A first line that is a JSON object or array says JSONL, whatever the file is called; prose does not parse.
bool LooksLikeJsonLines(std::string_view content, std::string_view name) {
  if (EndsWith(name, ".jsonl") || EndsWith(name, ".ndjson")) return true;
  const size_t begin = content.find_first_not_of(" \t\r\n");
  if (begin == content.npos || (content[begin] != '{' && content[begin] != '[')) return false;
  const size_t end = content.find('\n', begin);
  return ParseJson(content.substr(begin, end == content.npos ? content.npos : end - begin), "line").ok();
}

absl::Status ParseLines(std::string_view content, std::string_view field, Dataset& dataset) {
  dataset.kind = "jsonl";
  int64_t line = 0;
  for (size_t begin = 0; begin < content.size();) {
    size_t end = content.find('\n', begin);
    if (end == content.npos) end = content.size();
    const std::string_view text = content.substr(begin, end - begin);
    begin = end + 1;
    ++line;
    if (IsBlank(text)) continue;
    if (static_cast<int64_t>(dataset.entries.size()) >= kMaxEntries) {
      return Invalid(dataset.name, line, absl::StrCat("at most ", kMaxEntries, " entries"));
    }
    SAGE_ASSIGN_OR_RETURN(DatasetEntry entry, ReadLine(text, dataset.name, field, line));
    dataset.entries.push_back(std::move(entry));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> RenderMessages(const DatasetEntry& entry, const TokenizerFiles& files,
                                           const ChatTemplate& chat) {
  OrderedJson context = OrderedJson::object();
  context["messages"] = entry.messages;
  context["add_generation_prompt"] = false;
  context["bos_token"] = files.bos_token;
  context["eos_token"] = files.eos_token;
  return chat.Render(context);
}

absl::Status CheckIds(const std::vector<int32_t>& ids, const std::string& name, int64_t line, int64_t vocabulary) {
  for (const int32_t id : ids) {
    if (id < vocabulary) continue;
    return Invalid(name, line, absl::StrCat("token ids must be below the vocabulary size ", vocabulary, ", got ", id));
  }
  return absl::OkStatus();
}

// The first line that is no UTF-8; 0 when all are.
int64_t FirstBadLine(std::string_view content) {
  if (IsValidUtf8(content)) return 0;
  int64_t line = 0;
  for (size_t begin = 0; begin < content.size();) {
    size_t end = content.find('\n', begin);
    if (end == content.npos) end = content.size();
    ++line;
    if (!IsValidUtf8(content.substr(begin, end - begin))) return line;
    begin = end + 1;
  }
  return line;
}

absl::Status NeedTokenizer(const Dataset& dataset) {
  return MakeError(
      absl::StatusCode::kFailedPrecondition, "TOKENIZER_NOT_FOUND",
      absl::StrCat("dataset ", dataset.name, ": holds text, and the model has no tokenizer files; give token ids"));
}

}  // namespace

absl::StatusOr<Dataset> ParseDataset(std::string_view content, std::string_view name, std::string_view field) {
  Dataset dataset;
  dataset.name = std::string(name);
  dataset.file_bytes = static_cast<int64_t>(content.size());
  dataset.sha256 = Sha256Hex(content);
  if (IsBlank(content)) return Invalid(name, 1, "must not be empty");
  if (EndsWith(name, ".json")) {
    SAGE_ASSIGN_OR_RETURN(const Json value, ParseJson(content, absl::StrCat("dataset ", dataset.name)));
    if (value.is_array() && !value.empty() && value[0].is_number()) {
      dataset.kind = "ids";
      DatasetEntry entry;
      entry.line = 1;
      SAGE_ASSIGN_OR_RETURN(entry.ids, ReadIds(value, name, 1));
      dataset.entries.push_back(std::move(entry));
      return dataset;
    }
    return Invalid(name, 1, "a .json dataset must be one array of token ids (use .jsonl for one object a line)");
  }
  if (LooksLikeJsonLines(content, name)) {
    SAGE_RETURN_IF_ERROR(ParseLines(content, field, dataset));
    return dataset;
  }
  dataset.kind = "text";
  if (const int64_t line = FirstBadLine(content); line > 0) return Invalid(name, line, "text must be valid UTF-8");
  DatasetEntry entry;
  entry.line = 1;
  entry.text = std::string(content);
  dataset.entries.push_back(std::move(entry));
  return dataset;
}

absl::StatusOr<Dataset> ReadDataset(const std::string& path, std::string_view field, const std::string& name) {
  SAGE_ASSIGN_OR_RETURN(const std::string content, ReadFile(path));
  return ParseDataset(content, name.empty() ? std::filesystem::path(path).filename().string() : name, field);
}

absl::Status CheckDatasetIds(const Dataset& dataset, int64_t vocabulary) {
  for (const DatasetEntry& entry : dataset.entries) {
    SAGE_RETURN_IF_ERROR(CheckIds(entry.ids, dataset.name, entry.line, vocabulary));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::vector<int32_t>>> TokenizeEntries(const Dataset& dataset, const TokenizerFiles* files) {
  std::vector<std::vector<int32_t>> out;
  std::shared_ptr<const ChatTemplate> chat;
  for (const DatasetEntry& entry : dataset.entries) {
    if (!entry.ids.empty()) {
      if (files != nullptr && files->tokenizer != nullptr) {
        SAGE_RETURN_IF_ERROR(CheckIds(entry.ids, dataset.name, entry.line, files->tokenizer->vocab_size()));
      }
      out.push_back(entry.ids);
      continue;
    }
    if (files == nullptr || files->tokenizer == nullptr) return NeedTokenizer(dataset);
    std::string text = entry.text;
    const bool rendered = !entry.messages.is_null();
    if (rendered) {
      if (files->chat_template.empty()) {
        return MakeError(
            absl::StatusCode::kFailedPrecondition, "NO_CHAT_TEMPLATE",
            absl::StrCat("dataset ", dataset.name, " line ", entry.line, ": the model has no chat template"));
      }
      if (chat == nullptr) {
        SAGE_ASSIGN_OR_RETURN(chat, ChatTemplate::Compile(files->chat_template));
      }
      absl::StatusOr<std::string> shown = RenderMessages(entry, *files, *chat);
      if (!shown.ok()) return Annotate(shown.status(), absl::StrCat("dataset ", dataset.name, " line ", entry.line));
      text = *std::move(shown);
    }
    // A template writes its own beginning-of-text token.
    absl::StatusOr<std::vector<int32_t>> ids =
        files->tokenizer->Encode(text, /*add_special=*/!rendered, /*parse_special=*/rendered);
    if (!ids.ok()) return Annotate(ids.status(), absl::StrCat("dataset ", dataset.name, " line ", entry.line));
    out.push_back(*std::move(ids));
  }
  return out;
}

absl::StatusOr<std::vector<int32_t>> TokenizeStream(const Dataset& dataset, const TokenizerFiles* files) {
  bool only_text = true;
  for (const DatasetEntry& entry : dataset.entries) only_text = only_text && !entry.text.empty();
  if (only_text) {
    if (files == nullptr || files->tokenizer == nullptr) return NeedTokenizer(dataset);
    std::string text;
    for (const DatasetEntry& entry : dataset.entries) {
      if (!text.empty()) text.append("\n\n");
      text.append(entry.text);
    }
    return files->tokenizer->Encode(text, /*add_special=*/true, /*parse_special=*/false);
  }
  SAGE_ASSIGN_OR_RETURN(const std::vector<std::vector<int32_t>> entries, TokenizeEntries(dataset, files));
  std::vector<int32_t> out;
  for (const std::vector<int32_t>& ids : entries) out.insert(out.end(), ids.begin(), ids.end());
  return out;
}

}  // namespace sage
