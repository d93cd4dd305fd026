// What counts as a refusal in sage_rejections_total, and for which reasons; alert rules name these words.
#pragma once

#include "absl/status/status.h"

namespace sage::server {

// For load: come again later, or add replicas. QUEUE_FULL, WORKERS_BUSY, HTTP_BUSY and the like.
inline constexpr const char* kLoadRefusals[] = {
    "QUEUE_FULL",           "WORKERS_BUSY",         "HTTP_BUSY",           "INSUFFICIENT_MEMORY", "OUT_OF_MEMORY",
    "DEVICE_OUT_OF_MEMORY", "TOO_MANY_CONNECTIONS", "TOO_MANY_OPERATIONS",
};
// For who asks, what is asked, or the daemon's state.
inline constexpr const char* kOtherRefusals[] = {
    "TOKEN_MISSING",
    "TOKEN_INVALID",
    "ROLE_INSUFFICIENT",
    "CERTIFICATE_MISSING",
    "RATE_LIMITED",
    "DRAINING",
    "NOT_READY",
    "ENGINE_DRAINING",
    "ENGINE_NOT_READY",
    "SLOW_READER",
    "REQUEST_TIMEOUT",
    "PROFILE_RUNNING",
    "CALIBRATION_EXCEEDS_MEMORY",
    "NO_SPACE",
    "SPILL_FAILED",
    "REGEX_LIMIT",
    "TEXT_TOO_LONG",
};

// RESOURCE_EXHAUSTED for whatever reason, and the reasons above.
bool IsRefusal(const absl::Status& status);

}  // namespace sage::server
