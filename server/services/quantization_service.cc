// QuantizationService: calibrations and conversions as operations, kernel selection, capabilities.
#include <filesystem>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/api/linear_strategy.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "sage/quant/v1/quantization.grpc.pb.h"
#include "server/capabilities.h"
#include "server/convert.h"
#include "server/convert_status.h"
#include "server/daemon.h"
#include "server/services/call.h"
#include "server/services/dataset_content.h"
#include "server/services/services.h"

namespace sage::server {
namespace {

std::string DefaultOutput(const pb::CalibrateRequest& request, const std::string& strategy) {
  std::string leaf = std::filesystem::path(request.model()).filename().string();
  if (leaf.empty()) leaf = std::filesystem::path(request.model()).parent_path().filename().string();
  for (char& c : leaf) c = absl::ascii_isalnum(c) || c == '-' || c == '_' || c == '.' ? c : '-';
  return absl::StrCat(leaf.empty() || leaf[0] == '.' ? "model" : leaf.substr(0, 80), "-", strategy);
}

// A request id that was answered before, before anything is checked that the first run changed (the output exists).
absl::StatusOr<bool> Repeat(Daemon& daemon, const std::string& request_id, const char* kind, const std::string& body,
                            OperationRecord* record) {
  if (request_id.empty()) return false;
  if (request_id.size() > 128) return BadField("request_id", "TOO_LONG", "at most 128 bytes");
  SAGE_ASSIGN_OR_RETURN(std::optional<std::string> answer,
                        daemon.store().FindRequest("body:" + request_id, kind, Sha256Hex(body)));
  if (!answer) return false;
  SAGE_ASSIGN_OR_RETURN(*record, daemon.operations().Get(*answer));
  return true;
}

class QuantizationService final : public pb::QuantizationService::CallbackService {
 public:
  explicit QuantizationService(Daemon& daemon) : daemon_(daemon) {}

  grpc::ServerUnaryReactor* Calibrate(grpc::CallbackServerContext* context, const pb::CalibrateRequest* request,
                                      pb::Operation* response) override {
    return RunUnary(daemon_, context, "Calibrate", *request, Lane::kQuick, Admission::kNeeded,
                    [=, this](Call& call) { return StartCalibrate(call, *request, response); });
  }
  grpc::ServerUnaryReactor* Convert(grpc::CallbackServerContext* context, const pb::ConvertRequest* request,
                                    pb::Operation* response) override {
    return RunUnary(daemon_, context, "Convert", *request, Lane::kQuick, Admission::kNeeded,
                    [=, this](Call& call) { return StartConvert(call, *request, response); });
  }
  grpc::ServerUnaryReactor* SelectKernel(grpc::CallbackServerContext* context, const pb::SelectKernelRequest* request,
                                         pb::SelectKernelResponse* response) override {
    return RunUnary(daemon_, context, "SelectKernel", Lane::kQuick, Admission::kNeeded,
                    [=, this](Call&) { return server::SelectKernel(*request, response); });
  }
  grpc::ServerUnaryReactor* ListCapabilities(grpc::CallbackServerContext* context, const pb::ListCapabilitiesRequest*,
                                             pb::ListCapabilitiesResponse* response) override {
    return RunUnary(daemon_, context, "ListCapabilities", Lane::kQuick, Admission::kNeeded, [=, this](Call&) {
      FillCapabilities(daemon_.runtime().threads(), response);
      return absl::OkStatus();
    });
  }

 private:
  absl::Status StartCalibrate(Call& call, const pb::CalibrateRequest& asked, pb::Operation* response) {
    OperationRecord record;
    const std::string body = asked.SerializeAsString();
    SAGE_ASSIGN_OR_RETURN(const bool repeat, Repeat(daemon_, asked.request_id(), "calibrate", body, &record));
    if (!repeat) {
      pb::CalibrateRequest request = asked;
      const pb::QuantConfig& config = request.config();
      const std::string weights = config.weight_dtype().empty() ? "int4" : config.weight_dtype();
      std::string strategy = "kv-" + config.kv_dtype();  // what a plan of the KV cache alone is called
      if (weights != "none" || !config.activation_dtype().empty()) {
        SAGE_ASSIGN_OR_RETURN(strategy, ResolveLinearStrategy(weights, config.activation_dtype()));
      }
      SAGE_RETURN_IF_ERROR(ToCalibrationSpec(request, daemon_.paths()).status());
      if (request.output().empty()) request.set_output(DefaultOutput(request, strategy));
      const std::string name = request.output();
      call.SetTarget("output", name);
      SAGE_ASSIGN_OR_RETURN(*request.mutable_output(),
                            daemon_.paths().NewArtifact(name, ModelPaths::Existing::kArtifactMayExist));
      if (daemon_.operations().UsesTarget(request.output())) {
        return MakeError(absl::StatusCode::kAlreadyExists, "ARTIFACT_EXISTS",
                         absl::StrCat("output: \"", name, "\" is being written by another operation"));
      }
      if (request.validate_only()) {
        response->set_kind("calibrate");
        response->set_target(request.output());
        return absl::OkStatus();
      }
      if (request.dataset_name().empty()) {
        request.set_dataset_name(request.dataset().substr(request.dataset().rfind('/') + 1));
      }
      SAGE_RETURN_IF_ERROR(StoreDatasetContent(daemon_.paths().data_dir(), request.mutable_dataset(),
                                               request.mutable_dataset_content()));
      SAGE_ASSIGN_OR_RETURN(record, daemon_.operations().Start("calibrate", request.output(),
                                                               request.SerializeAsString(), request.request_id()));
      SAGE_RETURN_IF_ERROR(Remember(asked.request_id(), "calibrate", body, record.id));
    }
    call.SetTarget("operation", record.id);
    FillOperation(record, response);
    return absl::OkStatus();
  }

  absl::Status StartConvert(Call& call, const pb::ConvertRequest& asked, pb::Operation* response) {
    OperationRecord record;
    const std::string body = asked.SerializeAsString();
    SAGE_ASSIGN_OR_RETURN(const bool repeat, Repeat(daemon_, asked.request_id(), "convert", body, &record));
    if (!repeat) {
      pb::ConvertRequest request = asked;
      SAGE_RETURN_IF_ERROR(ToConvertSpec(request, daemon_.paths()).status());
      SAGE_ASSIGN_OR_RETURN(*request.mutable_output(), daemon_.paths().NewArtifact(asked.output()));
      SAGE_ASSIGN_OR_RETURN(record, daemon_.operations().Start("convert", request.output(), request.SerializeAsString(),
                                                               request.request_id()));
      SAGE_RETURN_IF_ERROR(Remember(asked.request_id(), "convert", body, record.id));
    }
    call.SetTarget("operation", record.id);
    FillOperation(record, response);
    return absl::OkStatus();
  }

  absl::Status Remember(const std::string& request_id, const char* kind, const std::string& body,
                        const std::string& id) {
    if (request_id.empty()) return absl::OkStatus();
    return daemon_.store().RecordRequest("body:" + request_id, kind, Sha256Hex(body), id);
  }

  Daemon& daemon_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeQuantizationService(Daemon& daemon) {
  return std::make_unique<QuantizationService>(daemon);
}

}  // namespace sage::server
