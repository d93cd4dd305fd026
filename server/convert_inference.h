// What a request of the Open Inference Protocol asks for, without the engine that would do it.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/api/engine.h"
#include "inference/grpc_service.pb.h"

namespace sage::server {

struct InferenceInput {
  GenerateSpec spec;                // the prompt's ids where they were given
  std::optional<std::string> text;  // or the prompt
  std::string model, id;
  bool streaming = false;  // many answers; otherwise one
  bool raw = false;        // answers in raw_output_contents
  bool wants_text = true, wants_ids = false, wants_reason = true;
};

// Every model has the version 1, which need not be said.
absl::Status CheckModelVersion(const char* field, const std::string& version);
// Version, id and model name. INVALID_ARGUMENT names the field, here and below.
absl::Status CheckInferenceModel(const inference::ModelInferRequest& request);
// `may_stream`: the call can answer more than once (and does unless asked not to).
absl::StatusOr<InferenceInput> ToInferenceInput(const inference::ModelInferRequest& request, bool may_stream);

}  // namespace sage::server
