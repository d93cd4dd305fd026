// Reads benchmark folders.
#include "engine/report/task_items.h"

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/file.h"
#include "engine/base/json.h"
#include "engine/base/status.h"

namespace sage {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxFileBytes = size_t{256} << 20;
constexpr int kShots = 5;

absl::Status Bad(const std::string& file, int64_t line, const std::string& rule) {
  return MakeError(absl::StatusCode::kInvalidArgument, "BAD_TASK", absl::StrCat(file, ":", line, ": ", rule));
}

// The rows of a CSV text (RFC 4180): quoted fields may hold commas, line breaks and doubled quotes.
std::vector<std::vector<std::string>> ParseCsv(const std::string& text) {
  std::vector<std::vector<std::string>> rows;
  std::vector<std::string> row(1);
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c != '"') {
        row.back() += c;
      } else if (i + 1 < text.size() && text[i + 1] == '"') {
        row.back() += text[++i];
      } else {
        quoted = false;
      }
    } else if (c == '"' && row.back().empty()) {
      quoted = true;
    } else if (c == ',') {
      row.emplace_back();
    } else if (c == '\n') {
      if (row.size() > 1 || !row[0].empty()) rows.push_back(row);
      row.assign(1, "");
    } else if (c != '\r') {
      row.back() += c;
    }
  }
  if (row.size() > 1 || !row[0].empty()) rows.push_back(row);
  return rows;
}

std::string Text(const Json& json, const char* key) {
  const auto it = json.find(key);
  return it != json.end() && it->is_string() ? it->get<std::string>() : "";
}

// HellaSwag's cleaning: bracketed remarks go, " [title]" ends a sentence.
std::string CleanCaption(std::string text) {
  text = absl::StrReplaceAll(std::string(absl::StripAsciiWhitespace(text)), {{" [title]", ". "}});
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const size_t end = text[i] == '[' ? text.find(']', i) : std::string::npos;
    if (end != std::string::npos) {
      i = end;
    } else {
      out += text[i];
    }
  }
  return absl::StrReplaceAll(out, {{"  ", " "}});
}

absl::StatusOr<TaskItem> ReadArc(const Json& row) {
  const Json& question = row["question"];
  TaskItem item{absl::StrCat("Question: ", Text(question, "stem"), "\nAnswer:"), {}, -1};
  const auto choices = question.find("choices");
  if (choices == question.end() || !choices->is_array()) return absl::InvalidArgumentError("choices must be a list");
  for (const Json& choice : *choices) {
    if (!choice.is_object()) return absl::InvalidArgumentError("a choice must be {text, label}");
    if (Text(choice, "label") == Text(row, "answerKey")) item.gold = static_cast<int>(item.choices.size());
    item.choices.push_back(absl::StrCat(" ", Text(choice, "text")));
  }
  return item;
}

absl::StatusOr<TaskItem> ReadHellaswag(const Json& row) {
  std::string second = Text(row, "ctx_b");
  for (size_t i = 0; i < second.size(); ++i) {  // Python's capitalize()
    second[i] = i == 0 ? absl::ascii_toupper(second[i]) : absl::ascii_tolower(second[i]);
  }
  const std::string first = Text(row, "ctx_a").empty() ? Text(row, "ctx") : Text(row, "ctx_a");
  TaskItem item{CleanCaption(absl::StrCat(Text(row, "activity_label"), ": ", first, " ", second)), {}, -1};
  if (!row["endings"].is_array()) return absl::InvalidArgumentError("endings must be a list");
  for (const Json& ending : row["endings"]) {
    item.choices.push_back(absl::StrCat(" ", CleanCaption(ending.is_string() ? ending.get<std::string>() : "")));
  }
  const auto label = row.find("label");
  if (label != row.end() && label->is_number_integer()) item.gold = label->get<int>();
  if (label != row.end() && label->is_string() && label->get<std::string>().size() == 1)
    item.gold = label->get<std::string>()[0] - '0';
  return item;
}

absl::StatusOr<TaskItem> ReadRow(const Json& row) {
  if (!row.is_object()) return absl::InvalidArgumentError("a row must be an object");
  if (row.contains("question") && row["question"].is_object()) return ReadArc(row);
  if (row.contains("endings")) return ReadHellaswag(row);
  if (row.contains("query")) {
    TaskItem item{absl::StrCat(Text(row, "query"), "\nAnswer:"), {}, -1};
    if (!row.contains("choices") || !row["choices"].is_array())
      return absl::InvalidArgumentError("choices must be a list");
    for (const Json& c : row["choices"])
      item.choices.push_back(absl::StrCat(" ", c.is_string() ? c.get<std::string>() : ""));
    if (row.contains("gold") && row["gold"].is_number_integer()) item.gold = row["gold"].get<int>();
    return item;
  }
  const std::string text = Text(row, "text");
  const size_t blank = text.rfind(' ');
  if (blank == std::string::npos || blank == 0) {
    return absl::InvalidArgumentError("a row must have question, query, endings, or a text of two words or more");
  }
  return TaskItem{text.substr(0, blank), {text.substr(blank)}, 0};
}

absl::Status ReadJsonLines(const std::string& file, std::vector<TaskItem>* out) {
  SAGE_ASSIGN_OR_RETURN(const std::string text, ReadFile(file, kMaxFileBytes));
  int64_t number = 0;
  for (size_t from = 0; from < text.size();) {
    const size_t to = std::min(text.find('\n', from), text.size());
    const std::string line(absl::StripAsciiWhitespace(text.substr(from, to - from)));
    from = to + 1;
    ++number;
    if (line.empty()) continue;
    const absl::StatusOr<Json> row = ParseJson(line, "row");
    if (!row.ok()) return Bad(file, number, std::string(row.status().message()));
    absl::StatusOr<TaskItem> item = ReadRow(*row);
    if (!item.ok()) return Bad(file, number, std::string(item.status().message()));
    if (item->gold < 0 || item->gold >= static_cast<int>(item->choices.size()))
      return Bad(file, number, absl::StrCat("the answer must name one of ", item->choices.size(), " choices"));
    out->push_back(*std::move(item));
  }
  return absl::OkStatus();
}

std::string MmluQuestion(const std::vector<std::string>& row) {
  std::string out = std::string(absl::StripAsciiWhitespace(row[0]));
  for (size_t i = 0; i < 4; ++i)
    absl::StrAppend(&out, "\n", std::string(1, static_cast<char>('A' + i)), ". ", row[i + 1]);
  return out + "\nAnswer:";
}

// "high_school_physics_test.csv" with the examples of ../dev/high_school_physics_dev.csv where there are any.
absl::Status ReadMmlu(const fs::path& file, std::vector<TaskItem>* out) {
  std::string subject = file.stem().string();
  for (const char* end : {"_test", "_val", "_dev"}) {
    if (absl::EndsWith(subject, end)) subject.resize(subject.size() - std::char_traits<char>::length(end));
  }
  std::string head = absl::StrCat("The following are multiple choice questions (with answers) about ",
                                  absl::StrReplaceAll(subject, {{"_", " "}}), ".\n\n");
  const fs::path shots = file.parent_path().parent_path() / "dev" / (subject + "_dev.csv");
  const auto read = [](const std::string& path) -> absl::StatusOr<std::vector<std::vector<std::string>>> {
    SAGE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
    auto rows = ParseCsv(text);
    for (size_t i = 0; i < rows.size(); ++i) {
      if (rows[i].size() != 6 || rows[i][5].size() != 1 || rows[i][5][0] < 'A' || rows[i][5][0] > 'D')
        return Bad(path, static_cast<int64_t>(i) + 1, "a row must be question, four choices and A, B, C or D");
    }
    return rows;
  };
  if (FileExists(shots.string())) {
    SAGE_ASSIGN_OR_RETURN(const auto rows, read(shots.string()));
    for (size_t i = 0; i < rows.size() && i < kShots; ++i)
      absl::StrAppend(&head, MmluQuestion(rows[i]), " ", rows[i][5], "\n\n");
  }
  SAGE_ASSIGN_OR_RETURN(const auto rows, read(file.string()));
  for (const auto& row : rows) out->push_back({head + MmluQuestion(row), {" A", " B", " C", " D"}, row[5][0] - 'A'});
  return absl::OkStatus();
}

// The files of the split that is judged, by name.
absl::StatusOr<std::vector<fs::path>> TaskFiles(const std::string& name, const std::string& folder) {
  std::vector<fs::path> all;
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string ending = it->path().extension().string();
    if (it->is_regular_file(error) && (ending == ".jsonl" || ending == ".csv")) all.push_back(it->path());
    if (all.size() > 10'000) return Bad(folder, 0, "at most 10000 files");
  }
  if (error) return Bad(folder, 0, absl::StrCat("cannot be listed: ", error.message()));
  std::sort(all.begin(), all.end());
  const auto keep = [&all](const std::string& word) {
    std::vector<fs::path> some;
    for (const fs::path& path : all) {
      const std::string file = absl::AsciiStrToLower(path.filename().string());
      if (file.find(word) != std::string::npos) some.push_back(path);
    }
    if (!some.empty()) all = some;
    return !some.empty();
  };
  if (!keep("test") && !keep("validation")) keep("val");
  const std::string lower = absl::AsciiStrToLower(name);
  for (const char* word : {"easy", "challenge"}) {
    if (lower.find(word) != std::string::npos) keep(word);
  }
  return all;
}

}  // namespace

absl::StatusOr<std::vector<TaskItem>> ReadTask(const std::string& name, const std::string& folder, int64_t limit) {
  SAGE_ASSIGN_OR_RETURN(const std::vector<fs::path> files, TaskFiles(name, folder));
  std::vector<TaskItem> all;
  for (const fs::path& file : files) {
    SAGE_RETURN_IF_ERROR(file.extension() == ".csv" ? ReadMmlu(file, &all) : ReadJsonLines(file.string(), &all));
  }
  if (all.empty()) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_TASK",
                     absl::StrCat("task ", name, ": ", folder, " must hold .jsonl or .csv files with questions"));
  }
  const int64_t total = static_cast<int64_t>(all.size());
  if (limit <= 0 || limit >= total) return all;
  std::vector<TaskItem> out;
  for (int64_t i = 0; i < limit; ++i) out.push_back(std::move(all[static_cast<size_t>(i * total / limit)]));
  return out;
}

}  // namespace sage
