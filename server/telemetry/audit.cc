// Whole lines by one write() on a descriptor that appends: two daemons may share a file.
#include "server/telemetry/audit.h"

#include <fcntl.h>
#include <unistd.h>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/telemetry/log.h"

namespace sage::server {

void AuditLog::Write(const Json& fields) {
  if (path_.empty()) return Log(LogLevel::kWarn, "audit", fields);  // at this level no setting of log-level hides it
  OrderedJson line = {{"time", absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone())}};
  for (const auto& [key, value] : fields.items()) line[key] = value;
  const std::string text = line.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
  std::lock_guard lock(mutex_);
  const int file = open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  const bool written = file >= 0 && write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  if (file >= 0) close(file);
  if (!written) Log(LogLevel::kError, "audit_not_written", fields);
}

}  // namespace sage::server
