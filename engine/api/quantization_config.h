// The quantization_config of a Hugging Face folder, wherever the tool put it: in config.json, in quantize_config.json
// or in quant_config.json.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/json.h"

namespace sage {

struct QuantizationConfig {
  Json values;         // an object; "w_bit" and "q_group_size" appear as "bits" and "group_size", "format" as
                       // "checkpoint_format" when only that is given
  std::string source;  // the file they are from
  std::vector<std::string> dynamic_keys;  // of the object "dynamic", in the order of the file: the first match decides
};

// True when config.json or, if that has no quantization_config, `side_file` beside it names `method`. A side file
// without quant_method counts when `unnamed` is set.
bool FolderQuantizedBy(const std::string& path, std::string_view method, const std::string& side_file, bool unnamed);

// INVALID_ARGUMENT naming the files when two of them disagree in what decides how weights are read.
absl::StatusOr<QuantizationConfig> ReadQuantizationConfig(const std::string& path);

}  // namespace sage
