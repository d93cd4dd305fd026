// Calibrates into a folder beside the output, converts it, and removes it; a rerun of a finished one finds its
// manifest.
#include "engine/runtime/calibrate_gguf.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>

#include "absl/strings/str_cat.h"
#include "engine/api/gguf_names.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "engine/runtime/artifact.h"
#include "engine/runtime/artifact_source.h"
#include "engine/runtime/calibrate_overrides.h"
#include "engine/runtime/calibrate_plan.h"
#include "engine/runtime/gguf_scheme.h"
#include "engine/runtime/layer_calibration.h"

namespace sage {
namespace {

namespace fs = std::filesystem;

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
      return InvalidInput("FIELD_NOT_SUPPORTED",
                          absl::StrCat("weight_dtype: ", scheme.word, " holds ", word, ", got ", asked.weight_dtype));
    }
    spec.weight_dtype = word;
    if (asked.asymmetric && !affine) {
      return InvalidInput("FIELD_NOT_SUPPORTED",
                          absl::StrCat("asymmetric: ", scheme.word, " has no zeros, gguf_q4_1 has"));
    }
    spec.asymmetric = affine;
  }
  if (!asked.activation_dtype.empty()) {
    return InvalidInput("FIELD_NOT_SUPPORTED", "activation_dtype: a GGUF says nothing of activations");
  }
  if (asked.group_size % 32 != 0 && asked.group_size > 0) {
    return InvalidInput("FIELD_NOT_SUPPORTED",
                        absl::StrCat("group_size: blocks of a GGUF hold 32 values, got ", asked.group_size));
  }
  if (asked.group_size == 0) spec.group_size = 32;
  spec.group_size_auto = false;
  if (!asked.scale_precision.empty() && asked.scale_precision != "f16" && asked.scale_precision != "fp16") {
    return InvalidInput("FIELD_NOT_SUPPORTED", "scale_precision: a GGUF holds f16");
  }
  spec.scale_precision = "f16";
  if (asked.act_order)
    return InvalidInput("FIELD_NOT_SUPPORTED", "act_order: a GGUF keeps groups in the order of inputs");
  return spec;
}

// The block type of each layer that the staged integers store otherwise than the rest.
absl::StatusOr<std::map<std::string, std::string>> IntegerTypes(const CalibrationPlan& plan, const GgufScheme& scheme) {
  std::map<std::string, std::string> out;
  if (scheme.exact) return out;  // each tensor takes the type that holds it
  for (const auto& [module, choice] : plan.overrides) {
    const int bits = choice.strategy->weight_bits, group = choice.linear.group_size;
    const bool symmetric = choice.linear.symmetric;
    const char* type = bits == 4 ? (symmetric ? "q4_0" : "q4_1") : bits == 8 && symmetric ? "q8_0" : nullptr;
    if (type == nullptr || (group > 0 && group % 32 != 0)) {
      return InvalidInput("OVERRIDE_NOT_HELD", absl::StrCat("override: ", module,
                                                            ": blocks of a GGUF hold 4 bits (q4_0, with zeros q4_1) or "
                                                            "symmetric 8 bits (q8_0) in groups of 32 values, got ",
                                                            bits, " bits, ", symmetric ? "symmetric" : "asymmetric",
                                                            ", group_size ", group));
    }
    out[module] = type;
  }
  return out;
}

// Words that a type with scales of its own cannot honour.
absl::Status CheckPlainWords(const CalibrationSpec& spec, const GgufScheme& scheme) {
  const auto refuse = [&](const char* field, const std::string& got) {
    return InvalidInput("FIELD_NOT_SUPPORTED", absl::StrCat(field, ": ", scheme.word,
                                                            " chooses its own scales from plain weights; gguf_q4_0, "
                                                            "gguf_q4_1 and gguf_q8_0 take more, got ",
                                                            got));
  };
  // "int4" is also what nobody said.
  if (spec.weight_dtype != "int4") return refuse("weight_dtype", spec.weight_dtype);
  if (!spec.activation_dtype.empty()) return refuse("activation_dtype", spec.activation_dtype);
  if (spec.group_size != 0) return refuse("group_size", absl::StrCat(spec.group_size));
  if (spec.asymmetric) return refuse("asymmetric", "true");
  if (spec.act_order) return refuse("act_order", "true");
  if (spec.clip_ratio != 0) return refuse("clip_ratio", absl::StrCat(spec.clip_ratio));
  if (!spec.scale_precision.empty()) return refuse("scale_precision", spec.scale_precision);
  if (!spec.activation_scheme.empty()) return refuse("activation_scheme", spec.activation_scheme);
  if (spec.activation_asymmetric) return refuse("activation_asymmetric", "true");
  if (spec.tensor_parallel != 1) return refuse("tensor_parallel", absl::StrCat(spec.tensor_parallel));
  if (spec.gptq_asymmetric_correction || spec.gptq_f64) return refuse("gptq", "an option of its solver");
  if (!spec.weight_granularity.empty()) return refuse("weight_granularity", spec.weight_granularity);
  if (!spec.fp8_format.empty()) return refuse("fp8_format", spec.fp8_format);
  if (spec.double_quant) return refuse("double_quant", "true");
  return absl::OkStatus();
}

absl::Status RefuseKv(const CalibrationSpec& spec) {
  const std::string& word = spec.kv_quantization;
  const bool named = !word.empty() && word != "none" && word != "auto";
  if (!named && spec.kv_include.empty() && spec.kv_exclude.empty() && spec.kv_scales.empty() && !spec.kv_asymmetric &&
      spec.kv_sink_tokens == 0) {
    return absl::OkStatus();
  }
  return InvalidInput(
      "FIELD_NOT_SUPPORTED",
      absl::StrCat("kv_quantization: a GGUF has no place for a plan of the KV cache; name it when an engine "
                   "starts, got '",
                   word, "'"));
}

// Modules that a K type or float type leaves out or stores otherwise.
absl::StatusOr<std::map<std::string, std::string>> PlainTypes(const CalibrationSpec& spec, const GgufScheme& scheme,
                                                              const ArtifactSource& source) {
  SAGE_ASSIGN_OR_RETURN(const std::vector<LinearOverride> overrides, ParseOverrides(spec.overrides));
  SAGE_ASSIGN_OR_RETURN(std::vector<std::string> kept, ResolveExclude(source.linears(), spec.exclude));
  ExcludeOverridden(overrides, source.linears(), &kept);
  std::vector<LinearSlot> slots;
  std::map<std::string, std::string> out;
  for (const LinearSlot& slot : source.linears()) {
    const bool stays = std::find(kept.begin(), kept.end(), slot.name) != kept.end();
    if (!stays) slots.push_back(slot);
    if (stays && slot.layer >= 0) out[slot.name] = "";  // the head's type is the format's own affair
  }
  if (slots.empty()) return InvalidInput("NOTHING_TO_QUANTIZE", "exclude: leaves no linear layer to quantize");
  SAGE_ASSIGN_OR_RETURN(const auto merged, MergeOverrides(overrides, slots, source.linears()));
  const bool floats = scheme.word == "gguf_f32" || scheme.word == "gguf_f16" || scheme.word == "gguf_bf16";
  for (const auto& [module, by] : merged) {
    const int bits = by.bits.value_or(0);
    const char* type = bits == 4 ? "q4_k" : bits == 6 ? "q6_k" : bits == 8 ? "q8_0" : nullptr;
    if (by.exclude.has_value() && !by.bits && !by.group_size && !by.symmetric) continue;
    if (floats || type == nullptr || by.group_size || by.symmetric) {
      return InvalidInput("OVERRIDE_NOT_HELD",
                          absl::StrCat("override '", by.text, "': ", scheme.word, " takes ",
                                       floats ? "exclude only" : "bits 4, 6 or 8 and exclude only"));
    }
    out[module] = type;
  }
  return out;
}

struct StoredTensor {
  int64_t bytes = 0;
  std::string sha256;
};

absl::StatusOr<std::map<std::string, StoredTensor>> StoredTensors(const Json& manifest) {
  std::map<std::string, StoredTensor> out;
  for (const Json& file : manifest.value("files", Json::array())) {
    const Json tensors = file.value("tensors", Json::object());
    for (const auto& [name, tensor] : tensors.items()) {
      SAGE_ASSIGN_OR_RETURN(out[name].bytes, JsonInt(tensor, "bytes", 0));
      SAGE_ASSIGN_OR_RETURN(out[name].sha256, JsonString(tensor, "sha256", ""));
    }
  }
  return out;
}

// The relative error of each layer as the calibration found it; empty where none ran.
absl::StatusOr<std::map<std::string, double>> RecordedErrors(const Json& manifest) {
  std::map<std::string, double> out;
  const Json record = manifest.value("calibration_record", Json());
  for (const Json& entry : record.is_object() ? record.value("layers", Json::array()) : Json::array()) {
    SAGE_ASSIGN_OR_RETURN(const std::string name, JsonString(entry, "name", ""));
    SAGE_ASSIGN_OR_RETURN(out[name], JsonDouble(entry, "error", 0));
  }
  return out;
}

absl::StatusOr<CalibrationResult> ResultOf(const CalibrationSpec& spec, const Json& manifest, ThreadPool& threads) {
  CalibrationResult result;
  result.artifact = fs::path(spec.output).filename().string();
  result.path = spec.output;
  result.quantization = spec.format;
  result.format = "gguf";
  SAGE_ASSIGN_OR_RETURN(result.weight_bytes, JsonInt(manifest.value("totals", Json::object()), "weight_bytes", 0));
  SAGE_ASSIGN_OR_RETURN(result.source_bytes, JsonInt(manifest.value("provenance", Json::object()), "file_bytes", 0));
  SAGE_ASSIGN_OR_RETURN(const auto tensors, StoredTensors(manifest));
  SAGE_ASSIGN_OR_RETURN(const auto errors, RecordedErrors(manifest));
  const Json types = manifest.value("conversion", Json::object()).value("types", Json::object());
  SAGE_ASSIGN_OR_RETURN(const std::unique_ptr<ArtifactSource> written, ArtifactSource::Open(spec.output));
  SAGE_ASSIGN_OR_RETURN(const std::unique_ptr<ArtifactSource> source, ArtifactSource::Open(spec.model));
  int64_t parameters = 0, bytes = 0;
  for (const LinearSlot& slot : written->linears()) {
    const std::string name = GgufNameOfHf(slot.name + ".weight");
    const auto tensor = tensors.find(name);
    if (tensor == tensors.end()) continue;  // a head that shares the embeddings
    LayerResult layer;
    layer.name = slot.name;
    layer.scheme = "gguf_" + types.value(name, "");
    layer.bytes = tensor->second.bytes;
    layer.sha256 = tensor->second.sha256;
    if (const auto known = errors.find(slot.name); known != errors.end()) {
      layer.error = known->second;
    } else {
      SAGE_ASSIGN_OR_RETURN(const Tensor before, source->Weight(slot, threads));
      SAGE_ASSIGN_OR_RETURN(const Tensor after, written->Weight(slot, threads));
      layer.error = RelativeError(before, after, threads);
    }
    if (slot.layer >= 0) {
      parameters += slot.N * slot.K;
      bytes += layer.bytes;
    }
    result.layers.push_back(std::move(layer));
  }
  if (parameters > 0) result.bits_per_weight = 8.0 * static_cast<double>(bytes) / static_cast<double>(parameters);
  return result;
}

// What a finished run of the same request left; null when there is nothing.
absl::StatusOr<Json> Finished(const CalibrationSpec& spec, const std::string& hash, const ConvertSpec& convert,
                              const ArtifactSource& source) {
  if (!FileExists(spec.output) && !IsDirectory(spec.output)) return Json();
  const absl::StatusOr<Json> manifest = ReadManifest(spec.output);
  const Json conversion = manifest.ok() ? manifest->value("conversion", Json::object()) : Json::object();
  bool same = conversion.value("format", Json()) == Json(spec.format);
  if (same && !hash.empty()) same = manifest->value("spec_hash", Json()) == Json(hash);
  if (same && hash.empty()) {
    SAGE_ASSIGN_OR_RETURN(const std::string sha256, source.checkpoint().Fingerprint());
    same = conversion.value("modules", Json()) == Json(convert.types) &&
           conversion.value("from", Json::object()).value("sha256", Json()) == Json(sha256);
  }
  if (same) return *manifest;
  return MakeError(absl::StatusCode::kAlreadyExists, "ARTIFACT_EXISTS",
                   absl::StrCat("output: ", spec.output,
                                " exists and was not made by this specification; delete it or choose another name"));
}

absl::Status CheckWords(const CalibrationSpec& spec, const GgufScheme& scheme, bool integers) {
  SAGE_RETURN_IF_ERROR(RefuseKv(spec));
  if (integers) return absl::OkStatus();
  if (!spec.method.empty() && spec.method != "minmax" && spec.method != "rtn") {
    return InvalidInput("METHOD_NEEDS_INTEGER_GRID",
                        absl::StrCat("method: ", scheme.word,
                                     " chooses its own scales from plain weights; use minmax, or "
                                     "gguf_q4_0, gguf_q4_1 or gguf_q8_0 with ",
                                     spec.method));
  }
  if (spec.rotate) {
    return InvalidInput(
        "ROTATION_NOT_SUPPORTED",
        absl::StrCat("rotate: ", scheme.word,
                     " is written from the model as it is; rotate it with weight_dtype none and convert "
                     "that, or use gguf_q4_0, gguf_q4_1 or gguf_q8_0"));
  }
  return CheckPlainWords(spec, scheme);
}

}  // namespace

absl::StatusOr<CalibrationResult> CalibrateGguf(const CalibrationSpec& spec, ThreadPool& threads,
                                                const CancelToken& cancel, const ProgressFn& progress) {
  const auto begin = std::chrono::steady_clock::now();
  SAGE_ASSIGN_OR_RETURN(const GgufScheme scheme, ParseGgufScheme(spec.format));
  const bool integers = scheme.exact || scheme.type == GgmlType::kQ4_0 || scheme.type == GgmlType::kQ4_1 ||
                        scheme.type == GgmlType::kQ8_0;
  SAGE_RETURN_IF_ERROR(CheckWords(spec, scheme, integers));
  SAGE_ASSIGN_OR_RETURN(const std::unique_ptr<ArtifactSource> source, ArtifactSource::Open(spec.model));
  ConvertSpec convert = {spec.model, spec.format, spec.output, {}};
  std::string hash;
  if (integers) {
    SAGE_ASSIGN_OR_RETURN(const CalibrationSpec inner, IntegerSpec(spec, scheme));
    SAGE_ASSIGN_OR_RETURN(const CalibrationPlan plan, PlanCalibration(inner));
    SAGE_ASSIGN_OR_RETURN(convert.types, IntegerTypes(plan, scheme));
    hash = plan.spec_hash;
    SAGE_ASSIGN_OR_RETURN(const Json before, Finished(spec, hash, convert, *source));
    if (before.is_null()) SAGE_RETURN_IF_ERROR(CalibrateModel(inner, threads, cancel, progress).status());
    convert.artifact = inner.output;
  } else {
    SAGE_ASSIGN_OR_RETURN(convert.types, PlainTypes(spec, scheme, *source));
  }
  SAGE_ASSIGN_OR_RETURN(Json manifest, Finished(spec, hash, convert, *source));
  const bool resumed = !manifest.is_null();
  if (!resumed) {
    SAGE_RETURN_IF_ERROR(ConvertArtifact(convert, threads, cancel, progress).status());
    SAGE_ASSIGN_OR_RETURN(manifest, ReadManifest(spec.output));
  }
  std::error_code ignored;
  if (integers) fs::remove_all(convert.artifact, ignored);
  SAGE_ASSIGN_OR_RETURN(CalibrationResult result, ResultOf(spec, manifest, threads));
  result.resumed = resumed;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

}  // namespace sage
