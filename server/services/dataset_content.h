// Datasets that travel with a request: stored once under their hash in the data folder.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace sage::quant::v1 {
class EvaluateRequest;
}  // namespace sage::quant::v1

namespace sage::server {

// With content: writes it to DATA_DIR/datasets/<sha256>.<txt|jsonl>, sets `dataset` to that path and clears `content`.
absl::Status StoreDatasetContent(const std::string& data_dir, std::string* dataset, std::string* content);

// The same for the files of tasks: each goes to DATA_DIR/datasets/tasks-<sha256>/ and `tasks` names that folder.
absl::Status StoreTaskContent(const std::string& data_dir, quant::v1::EvaluateRequest* request);

}  // namespace sage::server
