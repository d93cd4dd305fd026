// ReportService: evaluations as operations, and the reports they left.
#include "absl/strings/str_cat.h"
#include "engine/base/file.h"
#include "engine/base/status.h"
#include "google/protobuf/any.pb.h"
#include "sage/quant/v1/report.grpc.pb.h"
#include "server/convert.h"
#include "server/convert_status.h"
#include "server/daemon.h"
#include "server/services/call.h"
#include "server/services/dataset_content.h"
#include "server/services/services.h"

namespace sage::server {
namespace {

class ReportService final : public pb::ReportService::CallbackService {
 public:
  explicit ReportService(Daemon& daemon) : daemon_(daemon) {}

  grpc::ServerUnaryReactor* GetReport(grpc::CallbackServerContext* context, const pb::GetReportRequest* request,
                                      pb::Report* response) override {
    return RunUnary(daemon_, context, "GetReport", Lane::kQuick, Admission::kNotNeeded,
                    [=, this](Call&) { return Get(*request, response); });
  }
  grpc::ServerUnaryReactor* Evaluate(grpc::CallbackServerContext* context, const pb::EvaluateRequest* request,
                                     pb::Operation* response) override {
    return RunUnary(daemon_, context, "Evaluate", *request, Lane::kQuick, Admission::kNeeded,
                    [=, this](Call& call) { return Start(call, *request, response); });
  }

 private:
  absl::Status Get(const pb::GetReportRequest& request, pb::Report* response) {
    OperationRecord record;
    if (!request.operation().empty()) {
      SAGE_ASSIGN_OR_RETURN(record, daemon_.operations().Get(request.operation()));
    } else {
      SAGE_ASSIGN_OR_RETURN(const std::string path, daemon_.paths().ResolveModel(request.artifact(), "artifact"));
      absl::StatusOr<OperationRecord> newest = daemon_.store().NewestSucceeded("evaluate", path);
      if (newest.ok()) record = *newest;
    }
    google::protobuf::Any any;
    if (record.kind != "evaluate" || record.state != OperationState::kSucceeded ||
        !any.ParseFromString(record.result) || !any.UnpackTo(response)) {
      return MakeError(absl::StatusCode::kNotFound, "REPORT_NOT_FOUND",
                       absl::StrCat("report: none is finished for \"",
                                    request.operation().empty() ? request.artifact() : request.operation(), "\""));
    }
    return absl::OkStatus();
  }

  absl::Status Start(Call& call, const pb::EvaluateRequest& asked, pb::Operation* response) {
    if (asked.request_id().size() > 128) return BadField("request_id", "TOO_LONG", "at most 128 bytes");
    pb::EvaluateRequest request = asked;
    SAGE_ASSIGN_OR_RETURN(ReportSpec spec, ToReportSpec(request, daemon_.paths()));
    if (request.dataset().empty() && request.dataset_content().empty()) {
      return BadField("dataset", "EMPTY", "a dataset is needed");
    }
    if (request.dataset_name().empty()) {
      request.set_dataset_name(request.dataset().substr(request.dataset().rfind('/') + 1));
    }
    SAGE_RETURN_IF_ERROR(StoreTaskContent(daemon_.paths().data_dir(), &request));
    SAGE_RETURN_IF_ERROR(
        StoreDatasetContent(daemon_.paths().data_dir(), request.mutable_dataset(), request.mutable_dataset_content()));
    SAGE_ASSIGN_OR_RETURN(
        OperationRecord record,
        daemon_.operations().Start("evaluate", spec.artifact, request.SerializeAsString(), request.request_id()));
    call.SetTarget("operation", record.id);
    FillOperation(record, response);
    return absl::OkStatus();
  }

  Daemon& daemon_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeReportService(Daemon& daemon) { return std::make_unique<ReportService>(daemon); }

}  // namespace sage::server
