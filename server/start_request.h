// The JSON object that starts an engine: shared by POST /v1/management/engines and RepositoryModelLoad.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/base/json.h"
#include "sage/quant/v1/engine.pb.h"
#include "server/config.h"

namespace sage::server {

// Fields of StartEngineRequest by their JSON names, and the names SAGE's gateway has for some of them (model_id,
// engine_label, use_gpu, max_concurrent_requests). A field that would change what is started and is not supported is
// INVALID_ARGUMENT (UNSUPPORTED) unless it says what is so anyway; an unknown field is INVALID_ARGUMENT
// (UNKNOWN_FIELD). `own` is where the daemon's HTTP port listens: a `host` and `port` that say so ask for nothing else.
absl::StatusOr<quant::v1::StartEngineRequest> ParseStartRequest(const std::string& body, const ListenAddress& own);

}  // namespace sage::server
