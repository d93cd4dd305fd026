// Structured logs: one JSON object a line on stderr, or text for people.
#pragma once

#include <string>
#include <string_view>

#include "engine/base/json.h"

namespace sage::server {

enum class LogLevel { kDebug, kInfo, kWarn, kError };

// format: "json" or "text"; level: debug, info, warn, error. Call once at start.
void SetupLogs(const std::string& format, const std::string& level);

// `event` is a fixed word ("request", "engine_started"); everything that varies goes into `fields` (an object).
void Log(LogLevel level, std::string_view event, const Json& fields = Json::object());

}  // namespace sage::server
