// Text for calibration and reports: plain text or JSONL, read whole, checked line by line and named by its sha256.
//
// A JSONL line is an object with one of: the text field ("text" unless named), "messages" (rendered with the model's
// chat template), "inputs_pretokenized" (GLM's name for text), "input_ids" / "ids" / "token_ids" (token ids as they
// are); or it is a bare array of ids. A file that is one JSON array of integers is one entry of ids. Anything else is
// one plain text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "engine/tokenizer/tokenizer.h"

namespace sage {

struct DatasetEntry {
  int64_t line = 0;          // from 1; 1 for a plain text
  std::string text;          // empty when the entry has messages or ids
  OrderedJson messages;      // null unless given
  std::vector<int32_t> ids;  // empty unless given
};

struct Dataset {
  std::string name;    // file name without folders
  std::string sha256;  // of the file
  std::string kind;    // "text", "jsonl", "ids"
  int64_t file_bytes = 0;
  std::vector<DatasetEntry> entries;
};

// INVALID_ARGUMENT (DATASET_INVALID) names file, line and rule; `field` chooses the text member of JSONL objects ("" =
// text). `name` is what the user calls the file, "" = its own name; its ending says the kind.
absl::StatusOr<Dataset> ReadDataset(const std::string& path, std::string_view field, const std::string& name = "");
absl::StatusOr<Dataset> ParseDataset(std::string_view content, std::string_view name, std::string_view field);

// Token ids of every entry. Messages go through the model's chat template. `files` may be null when all entries are
// ids; otherwise FAILED_PRECONDITION (TOKENIZER_NOT_FOUND).
absl::StatusOr<std::vector<std::vector<int32_t>>> TokenizeEntries(const Dataset& dataset, const TokenizerFiles* files);

// DATASET_INVALID names the line of the first id that is not below `vocabulary`.
absl::Status CheckDatasetIds(const Dataset& dataset, int64_t vocabulary);

// One stream of ids: texts joined by blank lines and tokenised once, so a beginning-of-text id appears at most once, at
// the very start; entries of ids or messages follow one another.
absl::StatusOr<std::vector<int32_t>> TokenizeStream(const Dataset& dataset, const TokenizerFiles* files);

}  // namespace sage
