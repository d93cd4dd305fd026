// The audit log: one JSON line for every call that changes something, allowed or refused.
#pragma once

#include <mutex>
#include <string>

#include "engine/base/json.h"

namespace sage::server {

class AuditLog {
 public:
  // `path` "" = the lines go to the log as event "audit". The file is opened for each line, so it may be rotated.
  explicit AuditLog(std::string path = "") : path_(std::move(path)) {}
  // Adds the time. A file that cannot be written is reported in the log together with the line.
  void Write(const Json& fields);

 private:
  const std::string path_;
  std::mutex mutex_;
};

}  // namespace sage::server
