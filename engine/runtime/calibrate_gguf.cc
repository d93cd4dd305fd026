// Calibrates into a folder beside the output, converts it, and removes it; a rerun of a finished one finds its
// manifest.
#include "engine/runtime/calibrate_gguf.h"

#include <chrono>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"
#include "engine/runtime/calibrate_plan.h"
#include "engine/runtime/gguf_scheme.h"

namespace sage {
namespace {

namespace fs = std::filesystem;

absl::Status Invalid(std::string_view reason, const std::string& message) {
  return MakeError(absl::StatusCode::kInvalidArgument, reason, message);
}

// The calibration that comes first: integers that the wanted blocks hold as they are.
absl::StatusOr<CalibrationSpec> IntegerSpec(const CalibrationSpec& asked, const GgufScheme& scheme) {
  CalibrationSpec spec = asked;
  spec.format = "compressed_tensors";
  spec.output = asked.output + ".staged";
  const bool eight = scheme.type == GgmlType::kQ8_0, affine = scheme.type == GgmlType::kQ4_1;
  if (!scheme.exact) {
    const std::string word = eight ? "int8" : "int4";
    // "int4" is also what nobody said.
    if (asked.weight_dtype != "int4" && asked.weight_dtype != word) {
      return Invalid("FIELD_NOT_SUPPORTED",
                     absl::StrCat("weight_dtype: ", scheme.word, " holds ", word, ", got ", asked.weight_dtype));
    }
    spec.weight_dtype = word;
    if (asked.asymmetric && !affine) {
      return Invalid("FIELD_NOT_SUPPORTED", absl::StrCat("asymmetric: ", scheme.word, " has no zeros, gguf_q4_1 has"));
    }
    spec.asymmetric = affine;
  }
  if (!asked.activation_dtype.empty()) {
    return Invalid("FIELD_NOT_SUPPORTED", "activation_dtype: a GGUF says nothing of activations");
  }
  if (asked.group_size % 32 != 0 && asked.group_size > 0) {
    return Invalid("FIELD_NOT_SUPPORTED",
                   absl::StrCat("group_size: blocks of a GGUF hold 32 values, got ", asked.group_size));
  }
  if (asked.group_size == 0) spec.group_size = 32;
  spec.group_size_auto = false;
  if (!asked.scale_precision.empty() && asked.scale_precision != "f16" && asked.scale_precision != "fp16") {
    return Invalid("FIELD_NOT_SUPPORTED", "scale_precision: a GGUF holds f16");
  }
  spec.scale_precision = "f16";
  if (asked.act_order) return Invalid("FIELD_NOT_SUPPORTED", "act_order: a GGUF keeps groups in the order of inputs");
  return spec;
}

absl::StatusOr<CalibrationResult> ResultOf(const CalibrationSpec& spec, const Json& manifest) {
  CalibrationResult result;
  result.artifact = fs::path(spec.output).filename().string();
  result.path = spec.output;
  result.quantization = spec.format;
  result.format = "gguf";
  SAGE_ASSIGN_OR_RETURN(result.weight_bytes, JsonInt(manifest.value("totals", Json::object()), "weight_bytes", 0));
  SAGE_ASSIGN_OR_RETURN(result.source_bytes, JsonInt(manifest.value("provenance", Json::object()), "file_bytes", 0));
  int64_t bytes = 0;
  SAGE_ASSIGN_OR_RETURN(const std::unique_ptr<ArtifactSource> written, ArtifactSource::Open(spec.output));
  int64_t parameters = 0;
  for (const LinearSlot& slot : written->linears()) {
    if (slot.layer >= 0) parameters += slot.N * slot.K;
  }
  const Json files = manifest.value("files", Json::array());
  for (const Json& file : files) {
    const Json tensors = file.value("tensors", Json::object());
    for (const auto& [name, tensor] : tensors.items()) {
      const bool linear = name.rfind("blk.", 0) == 0 && name.find("norm") == name.npos && name.ends_with(".weight");
      SAGE_ASSIGN_OR_RETURN(const int64_t size, JsonInt(tensor, "bytes", 0));
      if (linear) bytes += size;
    }
  }
  if (parameters > 0) result.bits_per_weight = 8.0 * static_cast<double>(bytes) / static_cast<double>(parameters);
  const Json record = manifest.value("calibration_record", Json());
  for (const Json& entry : record.is_object() ? record.value("layers", Json::array()) : Json::array()) {
    LayerResult layer;
    SAGE_ASSIGN_OR_RETURN(layer.name, JsonString(entry, "name", ""));
    SAGE_ASSIGN_OR_RETURN(layer.scheme, JsonString(entry, "scheme", ""));
    SAGE_ASSIGN_OR_RETURN(layer.error, JsonDouble(entry, "error", 0));
    SAGE_ASSIGN_OR_RETURN(layer.sha256, JsonString(entry, "sha256", ""));
    SAGE_ASSIGN_OR_RETURN(layer.bytes, JsonInt(entry, "bytes", 0));
    result.layers.push_back(std::move(layer));
  }
  return result;
}

// Whether `manifest` tells of the model that is asked for, where no calibration's hash says it.
bool IsOfModel(const Json& manifest, const std::string& model) {
  const absl::StatusOr<std::unique_ptr<ArtifactSource>> source = ArtifactSource::Open(model);
  if (!source.ok()) return false;
  const absl::StatusOr<std::string> sha256 = (*source)->checkpoint().Fingerprint();
  return sha256.ok() && ManifestText(manifest, "/conversion/from/sha256") == *sha256;
}

// What a finished run of the same request left; null when there is nothing.
absl::StatusOr<Json> Finished(const CalibrationSpec& spec, const std::string& hash) {
  if (!FileExists(spec.output) && !IsDirectory(spec.output)) return Json();
  const absl::StatusOr<Json> manifest = ReadManifest(spec.output);
  if (manifest.ok() && ManifestText(*manifest, "/conversion/format") == spec.format &&
      (hash.empty() ? IsOfModel(*manifest, spec.model) : manifest->value("spec_hash", Json()) == Json(hash))) {
    return *manifest;
  }
  return MakeError(absl::StatusCode::kAlreadyExists, "ARTIFACT_EXISTS",
                   absl::StrCat("output: ", spec.output,
                                " exists and was not made by this specification; delete it or choose another name"));
}

}  // namespace

absl::StatusOr<CalibrationResult> CalibrateGguf(const CalibrationSpec& spec, ThreadPool& threads,
                                                const CancelToken& cancel, const ProgressFn& progress) {
  const auto begin = std::chrono::steady_clock::now();
  SAGE_ASSIGN_OR_RETURN(const GgufScheme scheme, ParseGgufScheme(spec.format));
  const bool integers = scheme.exact || scheme.type == GgmlType::kQ4_0 || scheme.type == GgmlType::kQ4_1 ||
                        scheme.type == GgmlType::kQ8_0;
  const bool plain = spec.method.empty() || spec.method == "minmax" || spec.method == "rtn";
  if (!integers && !plain) {
    return Invalid("METHOD_NEEDS_INTEGER_GRID",
                   absl::StrCat("method: ", scheme.word,
                                " chooses its own scales from plain weights; use minmax, or "
                                "gguf_q4_0, gguf_q4_1 or gguf_q8_0 with ",
                                spec.method));
  }
  if (spec.rotate && !integers) {
    return Invalid("ROTATION_NOT_SUPPORTED",
                   absl::StrCat("rotate: ", scheme.word,
                                " is written from the model as it is; rotate it with weight_dtype none and convert "
                                "that, or use gguf_q4_0, gguf_q4_1 or gguf_q8_0"));
  }
  std::string from = spec.model, hash;
  if (integers) {
    SAGE_ASSIGN_OR_RETURN(const CalibrationSpec inner, IntegerSpec(spec, scheme));
    SAGE_ASSIGN_OR_RETURN(const CalibrationPlan plan, PlanCalibration(inner));
    hash = plan.spec_hash;
    SAGE_ASSIGN_OR_RETURN(const Json before, Finished(spec, hash));
    if (before.is_null()) SAGE_RETURN_IF_ERROR(CalibrateModel(inner, threads, cancel, progress).status());
    from = inner.output;
  }
  SAGE_ASSIGN_OR_RETURN(Json manifest, Finished(spec, hash));
  const bool resumed = !manifest.is_null();
  if (!resumed) {
    SAGE_RETURN_IF_ERROR(ConvertArtifact({from, spec.format, spec.output}, threads, cancel, progress).status());
    SAGE_ASSIGN_OR_RETURN(manifest, ReadManifest(spec.output));
  }
  std::error_code ignored;
  if (integers) fs::remove_all(from, ignored);
  SAGE_ASSIGN_OR_RETURN(CalibrationResult result, ResultOf(spec, manifest));
  result.resumed = resumed;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

}  // namespace sage
