// A report as one HTML file that needs nothing else: tables and inline SVG.
#pragma once

#include <string>

#include "nlohmann/json.hpp"

namespace sage::cli {

std::string ReportHtml(const nlohmann::ordered_json& report);

}  // namespace sage::cli
