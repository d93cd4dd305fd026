// Engines that a file names, started before the daemon calls itself ready.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/cancel.h"

namespace sage::quant::v1 {
class StartEngineRequest;
}

namespace sage::server {

class Daemon;

// A JSON array of objects with the fields of StartEngineRequest. INVALID_ARGUMENT (BAD_CONFIG) names the element.
absl::StatusOr<std::vector<quant::v1::StartEngineRequest>> ParseEngines(const std::string& text);
// Starts them one after another; the first that does not start ends it.
absl::Status StartEngines(Daemon& daemon, const std::string& path, const CancelToken& cancel);

}  // namespace sage::server
