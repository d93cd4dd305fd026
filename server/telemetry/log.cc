// Log lines through spdlog: the sink adds nothing, the line is made here so that JSON stays valid.
#include "server/telemetry/log.h"

#include <atomic>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace sage::server {
namespace {

std::atomic<bool> text_format{false};

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

const char* Name(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarn:
      return "warn";
    case LogLevel::kError:
      return "error";
  }
  return "info";
}

spdlog::logger& Logger() {
  static auto* logger = new std::shared_ptr<spdlog::logger>([] {
    auto made = std::make_shared<spdlog::logger>("sage", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%v");
    return made;
  }());
  return **logger;
}

}  // namespace

void SetupLogs(const std::string& format, const std::string& level) {
  text_format = format == "text";
  Logger().set_level(level == "debug"   ? spdlog::level::debug
                     : level == "warn"  ? spdlog::level::warn
                     : level == "error" ? spdlog::level::err
                                        : spdlog::level::info);
  // The engine logs through spdlog's default logger: give it the same stream.
  auto engine = std::make_shared<spdlog::logger>("engine", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  engine->set_pattern(
      text_format ? "%Y-%m-%dT%H:%M:%S.%eZ %l %v"
                  : "{\"time\":\"%Y-%m-%dT%H:%M:%S.%eZ\",\"level\":\"%l\",\"event\":\"engine\",\"message\":\"%v\"}",
      spdlog::pattern_time_type::utc);
  engine->set_level(Logger().level());
  spdlog::set_default_logger(engine);
}

void Log(LogLevel level, std::string_view event, const Json& fields) {
  spdlog::logger& logger = Logger();
  if (!logger.should_log(ToSpdlog(level))) return;
  const std::string time = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone());
  std::string line;
  if (text_format) {
    line = time + " " + Name(level) + " " + std::string(event);
    for (const auto& [key, value] : fields.items()) line += " " + key + "=" + DumpJson(value);
  } else {
    OrderedJson object = {{"time", time}, {"level", Name(level)}, {"event", std::string(event)}};
    for (const auto& [key, value] : fields.items()) object[key] = value;
    line = object.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  }
  logger.log(ToSpdlog(level), spdlog::string_view_t(line.data(), line.size()));
  if (level >= LogLevel::kWarn) logger.flush();
}

}  // namespace sage::server
