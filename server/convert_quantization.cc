// Conversion of calibrations, conversions and evaluations.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "sage/quant/v1/quantization.pb.h"
#include "sage/quant/v1/report.pb.h"
#include "server/convert.h"
#include "server/convert_status.h"

namespace sage::server {
namespace {

absl::Status AtMost(const char* field, int64_t value, int64_t high) {
  if (value >= 0 && value <= high) return absl::OkStatus();
  return BadField(field, "OUT_OF_RANGE", absl::StrCat("must be from 0 to ", high, ", got ", value));
}

}  // namespace

absl::StatusOr<CalibrationSpec> ToCalibrationSpec(const pb::CalibrateRequest& request, const ModelPaths& paths) {
  CalibrationSpec spec;
  const pb::QuantConfig& config = request.config();
  SAGE_RETURN_IF_ERROR(AtMost("samples", request.samples(), 1 << 20));
  SAGE_RETURN_IF_ERROR(AtMost("sequence_length", request.sequence_length(), 1 << 20));
  if (config.group_size() < -1 || config.group_size() > (1 << 20)) {
    return BadField("group_size", "OUT_OF_RANGE", absl::StrCat("-1, 0 or a size, got ", config.group_size()));
  }
  if (!(config.clip_ratio() >= 0 && config.clip_ratio() < 1)) {
    return BadField("clip_ratio", "OUT_OF_RANGE", absl::StrCat("must be in [0, 1), got ", config.clip_ratio()));
  }
  if (config.kv_include_size() > 4096) return BadField("kv_include", "TOO_MANY", "at most 4096 patterns");
  if (config.kv_exclude_size() > 4096) return BadField("kv_exclude", "TOO_MANY", "at most 4096 patterns");
  if (config.exclude_size() > 4096) return BadField("exclude", "TOO_MANY", "at most 4096 patterns");
  if (config.overrides_size() > 1000) return BadField("overrides", "TOO_MANY", "at most 1000");
  if (config.max_memory_bytes() < 0) {
    return BadField("max_memory_bytes", "OUT_OF_RANGE", absl::StrCat("0 or bytes, got ", config.max_memory_bytes()));
  }
  if (config.tensor_parallel() < 0 || config.tensor_parallel() > 1024) {
    return BadField("tensor_parallel", "OUT_OF_RANGE", absl::StrCat("must be 1..1024, got ", config.tensor_parallel()));
  }
  if (!config.draft_mode().empty() && config.draft_mode() != "none") {
    return BadField("draft_mode", "UNSUPPORTED", absl::StrCat("must be none, got \"", config.draft_mode(), "\""));
  }
  SAGE_ASSIGN_OR_RETURN(spec.model, paths.ResolveModel(request.model()));
  spec.model_name = request.model();
  if (!request.dataset().empty() && request.dataset_content().empty()) {
    SAGE_ASSIGN_OR_RETURN(spec.dataset, paths.ResolveData(request.dataset()));
  }
  spec.dataset_name = request.dataset_name();
  spec.dataset_field = request.dataset_field();
  if (!config.method().empty()) spec.method = config.method();
  if (!config.weight_dtype().empty()) spec.weight_dtype = config.weight_dtype();
  spec.activation_dtype = config.activation_dtype();
  spec.group_size = config.group_size();
  spec.group_size_auto = config.group_size_auto();
  spec.asymmetric = config.asymmetric();
  spec.act_order = config.act_order();
  spec.rotate = config.rotate();
  spec.weight_granularity = config.weight_granularity();
  spec.fp8_format = config.fp8_format();
  spec.double_quant = config.double_quant();
  spec.gptq_asymmetric_correction = config.gptq_asymmetric_correction();
  spec.gptq_f64 = config.gptq_f64();
  spec.clip_ratio = config.clip_ratio();
  spec.scale_precision = config.scale_precision();
  spec.kv_quantization = config.kv_dtype();
  spec.activation_scheme = config.activation_scheme();
  spec.activation_asymmetric = config.activation_asymmetric();
  spec.kv_include.assign(config.kv_include().begin(), config.kv_include().end());
  spec.kv_exclude.assign(config.kv_exclude().begin(), config.kv_exclude().end());
  spec.kv_scales = config.kv_scales();
  spec.kv_asymmetric = config.kv_asymmetric();
  SAGE_RETURN_IF_ERROR(AtMost("kv_sink_tokens", config.kv_sink_tokens(), 1024));
  spec.kv_sink_tokens = config.kv_sink_tokens();
  if (request.samples() > 0) spec.samples = request.samples();
  if (request.sequence_length() > 0) spec.sequence_length = request.sequence_length();
  spec.seed = request.seed();
  spec.exclude.assign(config.exclude().begin(), config.exclude().end());
  spec.overrides.assign(config.overrides().begin(), config.overrides().end());
  spec.max_memory = config.max_memory_bytes();
  if (config.tensor_parallel() != 0) spec.tensor_parallel = config.tensor_parallel();
  spec.format = request.format();
  spec.output = request.output();
  return spec;
}

absl::StatusOr<ConvertSpec> ToConvertSpec(const pb::ConvertRequest& request, const ModelPaths& paths) {
  ConvertSpec spec;
  SAGE_ASSIGN_OR_RETURN(spec.artifact, paths.ResolveModel(request.artifact(), "artifact"));
  if (request.format().empty()) return BadField("format", "EMPTY", "must be named");
  spec.format = request.format();
  spec.output = request.output();
  return spec;
}

absl::StatusOr<ReportSpec> ToReportSpec(const pb::EvaluateRequest& request, const ModelPaths& paths) {
  ReportSpec spec;
  SAGE_RETURN_IF_ERROR(AtMost("windows", request.windows(), 1 << 20));
  SAGE_RETURN_IF_ERROR(AtMost("window", request.window(), 1 << 20));
  if (request.window() == 1) return BadField("window", "OUT_OF_RANGE", "must be at least 2");
  if (request.tasks_size() > 64) return BadField("tasks", "TOO_MANY", "at most 64 tasks");
  SAGE_ASSIGN_OR_RETURN(spec.artifact, paths.ResolveModel(request.artifact(), "artifact"));
  if (!request.reference().empty()) {
    SAGE_ASSIGN_OR_RETURN(spec.reference, paths.ResolveModel(request.reference(), "reference"));
  }
  if (!request.dataset().empty() && request.dataset_content().empty()) {
    SAGE_ASSIGN_OR_RETURN(spec.dataset, paths.ResolveData(request.dataset()));
  }
  spec.windows = request.windows();
  if (request.window() > 0) spec.window = request.window();
  if (request.task_items() < -1 || request.task_items() > (1 << 24)) {
    return BadField("task_items", "OUT_OF_RANGE", absl::StrCat("must be -1 to 2^24, got ", request.task_items()));
  }
  if (request.task_items() != 0) spec.task_items = std::max<int64_t>(0, request.task_items());
  spec.dataset_name = request.dataset_name();
  for (const auto& [name, folder] : request.tasks()) {
    if (request.task_content().count(name) != 0) continue;  // stored by the service first
    SAGE_ASSIGN_OR_RETURN(spec.tasks[name], paths.ResolveData(folder));
  }
  spec.measure_speed = !request.no_speed();
  spec.kv_quantization = request.kv_quant();
  return spec;
}

void FillCalibrateResult(const CalibrationResult& result, pb::CalibrateResult* out) {
  out->set_artifact(result.artifact);
  out->set_path(result.path);
  out->set_quantization(result.quantization);
  out->set_format(result.format);
  out->set_weight_bytes(result.weight_bytes);
  out->set_source_bytes(result.source_bytes);
  out->set_bits_per_weight(result.bits_per_weight);
  out->set_seconds(result.seconds);
  out->set_resumed(result.resumed);
  out->set_estimated_bytes(result.estimated_bytes);
  out->set_estimated_seconds(result.estimated_seconds);
  out->set_spilled_bytes(result.spilled_bytes);
  for (const std::string& note : result.notes) out->add_notes(note);
  for (const LayerResult& layer : result.layers) {
    auto* row = out->add_layers();
    row->set_name(layer.name);
    row->set_scheme(layer.scheme);
    row->set_error(layer.error);
    row->set_sha256(layer.sha256);
    row->set_bytes(layer.bytes);
  }
}

Json CalibrateJson(const CalibrationResult& result, const std::string& operation) {
  Json layers = Json::array();
  for (const LayerResult& layer : result.layers) {
    layers.push_back({{"name", layer.name},
                      {"scheme", layer.scheme},
                      {"error", layer.error},
                      {"sha256", layer.sha256},
                      {"bytes", layer.bytes}});
  }
  return {{"operation", operation},
          {"artifact", result.artifact},
          {"path", result.path},
          {"quantization", result.quantization},
          {"format", result.format},
          {"weight_bytes", result.weight_bytes},
          {"source_bytes", result.source_bytes},
          {"bits_per_weight", result.bits_per_weight},
          {"seconds", result.seconds},
          {"resumed", result.resumed},
          {"estimated_bytes", result.estimated_bytes},
          {"estimated_seconds", result.estimated_seconds},
          {"spilled_bytes", result.spilled_bytes},
          {"notes", result.notes},
          {"layers", layers}};
}

}  // namespace sage::server
