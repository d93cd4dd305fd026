// Follows "provenance" of sage_quant.json from the artifact to what it was made from.
#include "engine/runtime/artifact_origin.h"

#include <algorithm>
#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "engine/api/checkpoint_format.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"

namespace sage {
namespace {

namespace fs = std::filesystem;

constexpr int kMostSteps = 8;  // artifacts made from artifacts

absl::Status Refuse(const std::string& artifact, const std::string& model, const std::string& why) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "ARTIFACT_OF_ANOTHER_MODEL",
                   absl::StrCat("quantization: the artifact ", artifact, " must be made from the model ", model,
                                ", but ", why, "; start it under its own name"),
                   {{"artifact", artifact}, {"model", model}});
}

std::string Sizes(const DecoderConfig& c) {
  return absl::StrCat(c.architecture, " of ", c.L, " layers, hidden ", c.hidden, ", ffn ", c.ffn, ", vocabulary ", c.V,
                      ", heads ", c.H, "/", c.KH, " x ", c.D);
}

// When a file, or the newest file of a folder, was written last.
fs::file_time_type WrittenAt(const std::string& path) {
  std::error_code error;
  fs::file_time_type newest = fs::file_time_type::min();
  if (!fs::is_directory(path, error)) return fs::last_write_time(path, error);
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (it->is_regular_file(ignored)) newest = std::max(newest, fs::last_write_time(it->path(), ignored));
  }
  return newest;
}

// Whether the manifest of `artifact` says that it was made from `model`.
absl::StatusOr<bool> NamesModel(const std::string& artifact, const Json& manifest, const Checkpoint& model) {
  SAGE_ASSIGN_OR_RETURN(const int64_t bytes, JsonInt(manifest.value("provenance", Json::object()), "file_bytes", -1));
  if (bytes != static_cast<int64_t>(model.file_bytes())) return false;
  const bool same_place = ManifestText(manifest, "/provenance/path") == model.path();
  if (same_place && WrittenAt(model.path()) <= WrittenAt(absl::StrCat(artifact, "/", kManifestFile))) return true;
  SAGE_ASSIGN_OR_RETURN(const std::string sha256, model.Fingerprint());
  return sha256 == ManifestText(manifest, "/provenance/sha256");
}

}  // namespace

absl::Status CheckArtifactOf(const std::string& artifact, const DecoderConfig& config, const std::string& model) {
  SAGE_ASSIGN_OR_RETURN(const std::shared_ptr<Checkpoint> source, OpenCheckpoint(model));
  SAGE_ASSIGN_OR_RETURN(const DecoderConfig wanted, ParseModelConfig(source->config(), source->generation_config()));
  if (Sizes(config) != Sizes(wanted)) {
    return Refuse(artifact, model, absl::StrCat("it is ", Sizes(config), " and the model ", Sizes(wanted)));
  }
  std::string from = artifact;
  for (int step = 0; step < kMostSteps; ++step) {
    const absl::StatusOr<Json> manifest = ReadManifest(from);
    if (!manifest.ok() && step == 0) return absl::OkStatus();  // not ours: nothing says where it comes from
    if (!manifest.ok() || ManifestText(*manifest, "/provenance/sha256").empty()) break;
    SAGE_ASSIGN_OR_RETURN(const bool made, NamesModel(from, *manifest, *source));
    if (made) return absl::OkStatus();
    from = ManifestText(*manifest, "/provenance/path");
    if (from == source->path() || from == model) {
      return Refuse(artifact, model, "the model's files have changed since");
    }
  }
  return Refuse(artifact, model, absl::StrCat("it was made from ", from));
}

}  // namespace sage
