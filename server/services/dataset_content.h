// Datasets that travel with a request: stored once under their hash in the data folder.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace sage::server {

// With content: writes it to DATA_DIR/datasets/<sha256>.<txt|jsonl>, sets `dataset` to that path and clears `content`.
absl::Status StoreDatasetContent(const std::string& data_dir, std::string* dataset, std::string* content);

}  // namespace sage::server
