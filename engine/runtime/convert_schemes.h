// How the quantized layers of a checkpoint are stored in another format: one scheme for most of them, and others where
// the source stores some layers otherwise.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/api/checkpoint_format.h"
#include "engine/api/linear_strategy.h"
#include "engine/runtime/artifact_source.h"

namespace sage {

struct ConvertedScheme {
  LinearSpec spec;
  const LinearStrategyDef* strategy = nullptr;
  std::vector<std::string> modules;
};

class ConvertedLayers {
 public:
  // `format` is a written format's name. UNIMPLEMENTED (UNSUPPORTED_OUTPUT_FORMAT) when it does not hold a layer;
  // FAILED_PRECONDITION (NOTHING_QUANTIZED) when there is none.
  static absl::StatusOr<ConvertedLayers> Plan(const ArtifactSource& source, const std::string& format);

  const CheckpointFormatDef& format() const { return *format_; }
  const ConvertedScheme& most() const { return schemes_[most_]; }  // of most layers
  // Null for a layer that keeps its floats.
  const ConvertedScheme* Of(const std::string& module) const;
  // quantization_config of the written folder. MIXED_SCHEMES_NOT_HELD where the format has one scheme only.
  absl::StatusOr<Json> Config() const;

 private:
  absl::Status Add(const ArtifactSource& source, const LinearSlot& slot);
  void JoinWholeRows(const ArtifactSource& source);
  absl::Status Retarget(const ArtifactSource& source, const std::string& format);
  void Count();

  const CheckpointFormatDef* format_ = nullptr;
  std::vector<ConvertedScheme> schemes_;
  std::map<std::string, size_t> scheme_of_;  // of quantized modules
  std::vector<std::string> ignored_;
  size_t most_ = 0;
};

// What a layer's 8-bit activations are, beside its weights: bits, one stored scale and zero point, or dynamic groups.
struct StoredActivations {
  int bits = 16;
  bool fixed = false;
  float scale = 0, zero = 0;
  bool symmetric = true;  // of dynamic ones
  int group_size = -1;

  bool operator==(const StoredActivations&) const = default;
};
absl::StatusOr<StoredActivations> ActivationsOf(const StoredLinear& stored);

}  // namespace sage
