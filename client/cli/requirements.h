// Gates over a report: "kl.mean<0.01,perplexity.ratio<=1.02".
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "client/cli/options.h"

namespace sage::cli {

struct Requirement {
  std::string text;  // as written
  std::string path;  // dotted into the JSON
  std::string op;    // < <= > >= ==
  double number = 0;
};

// Comma-separated `path OP number`. A failure has exit code 2.
std::optional<Failure> ParseRequirements(const std::string& text, std::vector<Requirement>* out);
// Appends {require, value, met} for each to `out`. A path that is absent or no number is a failure with exit code 2.
std::optional<Failure> CheckRequirements(const std::vector<Requirement>& requirements,
                                         const nlohmann::ordered_json& document, nlohmann::ordered_json* out);

}  // namespace sage::cli
