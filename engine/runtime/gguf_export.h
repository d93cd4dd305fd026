// Writes a checkpoint as one GGUF file.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/cancel.h"
#include "engine/runtime/artifact_shard.h"
#include "engine/runtime/gguf_scheme.h"

namespace sage {

struct GgufExport {
  ShardRecord file;
  std::map<std::string, std::string> types;  // tensor -> ggml type
  std::vector<std::string> notes;            // which tensors got another type than asked for, and why
};

// The file is complete and fsynced when this returns; `folder` is the caller's to publish or delete. Progress counts
// `total` steps of which this does the first `items`.
absl::StatusOr<GgufExport> WriteGguf(const ArtifactSource& source, const GgufScheme& scheme, const std::string& folder,
                                     const std::string& file, ThreadPool& threads, const CancelToken& cancel,
                                     const ProgressFn& progress);

}  // namespace sage
