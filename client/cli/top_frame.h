// One picture of a daemon for `sage top`: rates from two looks at the same counters, and a text that fits a terminal.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "sage/quant/v1/engine.pb.h"
#include "sage/quant/v1/operation.pb.h"

namespace sage::cli {

// What one look at the daemon saw.
struct TopLook {
  double seconds = 0;  // on a steady clock
  std::vector<::sage::quant::v1::Engine> engines;
  std::vector<::sage::quant::v1::Operation> operations;  // newest first
};

// {"engines": [{engine_id state quantization kv_quant running waiting waiting_tokens kv_share tokens_per_second
// prompt_tokens_per_second weight_bytes kv_bytes}], "operations": [...]}. Rates are 0 for an engine that `before`
// lacks.
nlohmann::ordered_json TopJson(const TopLook& before, const TopLook& now);
// The same as lines of at most `columns` characters and at most `rows` lines (0 = as many as there are).
std::string TopFrame(const nlohmann::ordered_json& top, const std::string& title, int columns, int rows);

}  // namespace sage::cli
