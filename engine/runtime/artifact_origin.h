// Whether an artifact was made from the model under whose name it is to be served.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "engine/api/model.h"

namespace sage {

// FAILED_PRECONDITION (ARTIFACT_OF_ANOTHER_MODEL) when architecture or sizes differ, or when the artifact's provenance
// names other bytes than the model's. `config` is the artifact's. An artifact made from an artifact counts as made from
// what that was made from; a checkpoint without sage_quant.json is judged by its sizes alone.
//
// The model is read and hashed only when neither its path nor its times say that it is the one.
absl::Status CheckArtifactOf(const std::string& artifact, const DecoderConfig& config, const std::string& model);

}  // namespace sage
