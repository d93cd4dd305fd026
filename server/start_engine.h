// Starting an engine with its operation: shared by the gRPC and the HTTP interface. Blocks.
#pragma once

#include "absl/status/statusor.h"
#include "engine/base/cancel.h"
#include "server/engine_table.h"

namespace sage::quant::v1 {
class StartEngineRequest;
}

namespace sage::server {

class Daemon;

// `on_begun` (may be empty) hears the engine's and the operation's ids as soon as they exist. Cancelling the operation
// or `cancel` stops the start.
absl::StatusOr<EngineRecord> StartEngineWithOperation(
    Daemon& daemon, const quant::v1::StartEngineRequest& request, const CancelToken& cancel,
    const std::function<void(const std::string& engine_id, const std::string& operation)>& on_begun);

}  // namespace sage::server
