// Content-addressed dataset files.
#include "server/services/dataset_content.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
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

}  // namespace sage::server
