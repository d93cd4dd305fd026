// Content-addressed dataset files.
#include "server/services/dataset_content.h"

#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "sage/quant/v1/report.pb.h"
#include "server/convert_status.h"

namespace sage::server {

absl::Status StoreDatasetContent(const std::string& data_dir, std::string* dataset, std::string* content) {
  if (content->empty()) return absl::OkStatus();
  if (content->size() > (size_t{48} << 20)) {
    return BadField("dataset_content", "TOO_LARGE", "at most 48 MiB; put larger files under a model root");
  }
  const char* ending = absl::EndsWith(*dataset, ".jsonl")  ? ".jsonl"
                       : absl::EndsWith(*dataset, ".json") ? ".json"
                                                           : ".txt";
  const std::string path = absl::StrCat(data_dir, "/datasets/", Sha256Hex(*content), ending);
  if (!FileExists(path)) SAGE_RETURN_IF_ERROR(WriteFileAtomic(path, *content));
  *dataset = path;
  content->clear();
  return absl::OkStatus();
}

absl::Status StoreTaskContent(const std::string& data_dir, quant::v1::EvaluateRequest* request) {
  size_t total = 0;
  for (const auto& [task, content] : request->task_content()) {
    Sha256 hash;
    std::map<std::string, const std::string*> files;  // in a fixed order
    for (const auto& [name, bytes] : content.files()) {
      total += bytes.size();
      files[name] = &bytes;
    }
    if (total > (size_t{48} << 20) || files.size() > 10'000) {
      return BadField("task_content", "TOO_LARGE", "at most 48 MiB and 10000 files; put more under a model root");
    }
    for (const auto& [name, bytes] : files) {
      hash.Update(name.data(), name.size() + 1);
      hash.Update(bytes->data(), bytes->size());
    }
    const std::string folder = absl::StrCat(data_dir, "/datasets/tasks-", hash.HexDigest());
    for (const auto& [name, bytes] : files) {
      SAGE_ASSIGN_OR_RETURN(const std::string path, JoinInside(folder, name));
      if (FileExists(path)) continue;
      SAGE_RETURN_IF_ERROR(MakeDirectories(path.substr(0, path.rfind('/'))));
      SAGE_RETURN_IF_ERROR(WriteFileAtomic(path, *bytes));
    }
    (*request->mutable_tasks())[task] = folder;
  }
  request->clear_task_content();
  return absl::OkStatus();
}

}  // namespace sage::server
