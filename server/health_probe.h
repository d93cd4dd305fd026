// `sagequantd --health`: asks the daemon of this configuration whether it lives; for container health checks.
#pragma once

#include "absl/status/status.h"
#include "server/config.h"

namespace sage::server {

// GET /health/live on the configured HTTP port. UNAVAILABLE (NOT_LIVE) says what came instead of 200.
absl::Status ProbeHealth(const DaemonConfig& config);

}  // namespace sage::server
