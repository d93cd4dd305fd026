// The work of long operations, on the runtime.
#include "server/operations/kinds.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/file.h"
#include "engine/base/json.h"
#include "engine/base/status.h"
#include "google/protobuf/any.pb.h"
#include "sage/quant/v1/quantization.pb.h"
#include "sage/quant/v1/report.pb.h"
#include "server/convert.h"
#include "server/daemon.h"
#include "server/operations/calibration_work.h"

namespace sage::server {
namespace {

absl::Status BadSpec(const OperationRecord& record) {
  return MakeError(absl::StatusCode::kInternal, "BAD_OPERATION_SPEC",
                   absl::StrCat(record.id, ": its stored request cannot be read"));
}

std::string AnyBytes(const google::protobuf::Message& message) {
  google::protobuf::Any any;
  any.PackFrom(message);
  return any.SerializeAsString();
}

absl::StatusOr<OperationOutcome> RunCalibrate(Daemon& daemon, const OperationRecord& record, const CancelToken& cancel,
                                              const ProgressFn& progress) {
  pb::CalibrateRequest request;
  if (!request.ParseFromString(record.spec)) return BadSpec(record);
  SAGE_ASSIGN_OR_RETURN(CalibrationSpec spec, ToCalibrationSpec(request, daemon.paths()));
  // One work folder for all: the engine keeps an unfinished artifact there under the hash of its specification.
  spec.work_dir = absl::StrCat(daemon.paths().data_dir(), "/work");
  int64_t last = -1;
  absl::Time began = absl::Now();
  const auto timed = [&](const Progress& now) {  // a layer lasts from one step of the progress to the next
    const absl::Time time = absl::Now();
    if (last >= 0 && now.done > last && now.stage.rfind("resuming", 0) != 0) {
      daemon.metrics().Observe("sage_calibration_layer_seconds", {{"method", spec.method}},
                               absl::ToDoubleSeconds(time - began) / static_cast<double>(now.done - last));
    }
    if (now.done != last) began = time;
    last = now.done;
    if (progress) progress(now);
  };
  absl::StatusOr<CalibrationResult> result = daemon.runtime().Calibrate(spec, cancel, timed);
  if (!result.ok()) {
    // Cancelled by somebody, not by the end of the daemon: nobody comes back for the finished layers.
    const absl::StatusOr<OperationRecord> now = daemon.operations().Get(record.id);
    const bool asked = now.ok() && now->cancel_requested;
    if (asked && absl::IsCancelled(result.status())) DiscardCalibration(spec.work_dir, spec.output);
    return result.status();
  }
  if (result->seconds > 0) {  // an artifact that was there already took none
    daemon.metrics().Increment("sage_calibration_layers_total", {{"method", spec.method}},
                               static_cast<double>(result->layers.size()));
  }
  if (result->artifact.empty()) result->artifact = std::filesystem::path(spec.output).filename().string();
  if (result->path.empty()) result->path = spec.output;
  pb::CalibrateResult message;
  FillCalibrateResult(*result, &message);
  return OperationOutcome{AnyBytes(message), DumpJson(CalibrateJson(*result, record.id))};
}

absl::StatusOr<OperationOutcome> RunConvert(Daemon& daemon, const OperationRecord& record, const CancelToken& cancel,
                                            const ProgressFn& progress) {
  pb::ConvertRequest request;
  if (!request.ParseFromString(record.spec)) return BadSpec(record);
  SAGE_ASSIGN_OR_RETURN(ConvertSpec spec, ToConvertSpec(request, daemon.paths()));
  SAGE_ASSIGN_OR_RETURN(ConvertResult result, daemon.runtime().Convert(spec, cancel, progress));
  if (result.path.empty()) result.path = spec.output;
  pb::ConvertResult message;
  message.set_lossless(result.lossless);
  message.set_tensors(result.tensors);
  message.set_max_abs_difference(result.max_abs_difference);
  message.set_path(result.path);
  Json json = {{"operation", record.id},
               {"lossless", result.lossless},
               {"tensors", result.tensors},
               {"max_abs_difference", result.max_abs_difference},
               {"path", result.path}};
  // What the written manifest tells of each tensor: its type, what changed in value, and why.
  if (absl::StatusOr<std::string> text = ReadFile(result.path + "/sage_quant.json"); text.ok()) {
    const absl::StatusOr<Json> manifest = ParseJson(*text, "sage_quant.json");
    const Json conversion = manifest.ok() ? manifest->value("conversion", Json::object()) : Json::object();
    for (const char* key : {"types", "changed", "notes"}) {
      if (conversion.contains(key)) json[key] = conversion[key];
    }
  }
  return OperationOutcome{AnyBytes(message), DumpJson(json)};
}

absl::StatusOr<OperationOutcome> RunEvaluate(Daemon& daemon, const OperationRecord& record, const CancelToken& cancel,
                                             const ProgressFn& progress) {
  pb::EvaluateRequest request;
  if (!request.ParseFromString(record.spec)) return BadSpec(record);
  SAGE_ASSIGN_OR_RETURN(ReportSpec spec, ToReportSpec(request, daemon.paths()));
  SAGE_ASSIGN_OR_RETURN(Json report, daemon.runtime().Report(spec, cancel, progress));
  pb::Report message;
  message.set_artifact(request.artifact());
  message.set_operation(record.id);
  message.mutable_create_time()->set_seconds(NowMs() / 1000);
  message.set_json(DumpJson(report));
  return OperationOutcome{AnyBytes(message), message.json()};
}

}  // namespace

std::map<std::string, OperationKind> OperationKinds(Daemon& daemon) {
  using Run =
      absl::StatusOr<OperationOutcome> (*)(Daemon&, const OperationRecord&, const CancelToken&, const ProgressFn&);
  const auto bind = [&daemon](Run run) -> OperationWork {
    return [&daemon, run](const OperationRecord& record, const CancelToken& cancel, const ProgressFn& progress) {
      return run(daemon, record, cancel, progress);
    };
  };
  return {{"calibrate", {bind(RunCalibrate), /*resumable=*/true}},
          {"convert", {bind(RunConvert), false}},
          {"evaluate", {bind(RunEvaluate), false}},
          {"start_engine", {nullptr, false}}};
}

}  // namespace sage::server
