// Watching, cancelling and printing operations.
#include "client/cli/operations.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "client/cli/progress.h"
#include "google/protobuf/util/time_util.h"
#include "sage/quant/v1/operation.grpc.pb.h"

namespace sage::cli {
namespace {

namespace v1 = ::sage::quant::v1;
using Json = nlohmann::ordered_json;

constexpr size_t kMaxDatasetBytes = size_t{48} << 20;

std::string StateName(v1::OperationState state) {
  constexpr std::string_view kPrefix = "OPERATION_STATE_";
  const std::string name = v1::OperationState_Name(state);
  return name.rfind(kPrefix, 0) == 0 ? name.substr(kPrefix.size()) : name;
}

bool Ended(const v1::Operation& operation) {
  return operation.state() == v1::OPERATION_STATE_SUCCEEDED || operation.state() == v1::OPERATION_STATE_FAILED ||
         operation.state() == v1::OPERATION_STATE_CANCELLED;
}

Json ResultJson(const v1::Operation& operation) {
  if (operation.result_json().empty()) return nullptr;
  Json out = Json::parse(operation.result_json(), nullptr, /*allow_exceptions=*/false);
  return out.is_discarded() ? Json(nullptr) : out;
}

// Ctrl-C ended the watch: the work itself is asked to stop too.
Failure CancelInterrupted(Context& context, const v1::Operation& operation) {
  auto stub = v1::OperationService::NewStub(context.session->channel());
  Session::Call call(*context.session);
  v1::CancelOperationRequest request;
  request.set_id(operation.id());
  v1::Operation answer;
  const grpc::Status status = stub->CancelOperation(call.get(), request, &answer);
  const std::string note = status.ok() ? "cancelled " : "could not cancel ";
  return {.exit_code = kCancelled,
          .code = "CANCELLED",
          .reason = "INTERRUPTED",
          .message = note + operation.kind() + " " + operation.id(),
          .metadata = {{"operation", operation.id()}}};
}

Failure EndedBadly(const v1::Operation& operation) {
  Failure failure = StatusFailure(operation.error());
  if (operation.state() == v1::OPERATION_STATE_CANCELLED) failure.exit_code = kCancelled;
  if (!operation.has_error()) {
    failure.code = operation.state() == v1::OPERATION_STATE_CANCELLED ? "CANCELLED" : "UNKNOWN";
    failure.message = operation.kind() + " " + operation.id() + ": " + StateName(operation.state());
  }
  if (failure.reason.empty()) failure.reason = failure.code;
  failure.metadata["operation"] = operation.id();
  return failure;
}

}  // namespace

Json OperationJson(const v1::Operation& operation) {
  Json out = {{"id", operation.id()},
              {"kind", operation.kind()},
              {"state", StateName(operation.state())},
              {"progress",
               {{"done", operation.progress().done()},
                {"total", operation.progress().total()},
                {"unit", operation.progress().unit()},
                {"stage", operation.progress().stage()},
                {"eta_seconds", nullptr}}},
              {"error", nullptr},
              {"result", ResultJson(operation)},
              {"target", operation.target()},
              {"attempts", operation.attempts()},
              {"cancel_requested", operation.cancel_requested()}};
  if (operation.has_progress() && operation.progress().eta_seconds() >= 0) {
    out["progress"]["eta_seconds"] = operation.progress().eta_seconds();
  }
  if (operation.has_error()) out["error"] = FailureJson(StatusFailure(operation.error()));
  using google::protobuf::util::TimeUtil;
  if (operation.has_create_time()) out["create_time"] = TimeUtil::ToString(operation.create_time());
  if (operation.has_start_time()) out["start_time"] = TimeUtil::ToString(operation.start_time());
  if (operation.has_end_time()) out["end_time"] = TimeUtil::ToString(operation.end_time());
  return out;
}

std::string CutToColumns(const std::string& text, int columns) {
  if (columns <= 0) return text;
  int seen = 0;
  size_t last = 0;  // where the last character but one begins that still fits
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0) == 0x80) continue;
    if (seen == columns - 1) last = i;
    if (++seen > columns) return text.substr(0, last) + "…";
  }
  return text;
}

// The id begins with the kind, so the kind has no column.
std::string OperationLine(const v1::Operation& operation, int columns) {
  const v1::OperationProgress& p = operation.progress();
  std::string share = "-", eta;
  if (p.total() > 0) share = std::to_string(std::clamp<int64_t>(100 * p.done() / p.total(), 0, 100)) + "%";
  if (!Ended(operation) && operation.has_progress() && p.eta_seconds() >= 0 && p.done() > 0) {
    eta = "ETA " + FormatSeconds(p.eta_seconds()) + " ";
  }
  char head[160];
  std::snprintf(head, sizeof head, "%-36s %-9s %4s  ", operation.id().c_str(), StateName(operation.state()).c_str(),
                share.c_str());
  return CutToColumns(head + eta + operation.target(), columns);
}

void PrintOperation(const v1::Operation& operation) {
  const v1::OperationProgress& p = operation.progress();
  std::printf("%-28s %-13s %-10s", operation.id().c_str(), operation.kind().c_str(),
              StateName(operation.state()).c_str());
  if (p.total() > 0) {
    std::printf(" %3d%% %lld/%lld %s",
                static_cast<int>(100.0 * static_cast<double>(p.done()) / static_cast<double>(p.total())),
                static_cast<long long>(p.done()), static_cast<long long>(p.total()), p.unit().c_str());
  }
  if (!Ended(operation) && operation.has_progress() && p.eta_seconds() >= 0) {
    std::printf(", ETA %s", FormatSeconds(p.eta_seconds()).c_str());
  }
  std::printf("  %s\n", operation.target().c_str());
  if (operation.has_error()) std::printf("  error: %s\n", operation.error().message().c_str());
}

std::optional<Failure> WaitForOperation(Context& context, const std::string& title, v1::Operation* operation) {
  ProgressPrinter printer(title, /*quiet=*/false);
  if (!Ended(*operation)) {
    auto stub = v1::OperationService::NewStub(context.session->channel());
    Session::Call call(*context.session);
    v1::WatchOperationRequest request;
    request.set_id(operation->id());
    auto reader = stub->WatchOperation(call.get(), request);
    while (reader->Read(operation)) {
      const v1::OperationProgress& p = operation->progress();
      printer.Update(p.stage(), p.done(), p.total(), p.unit(), operation->has_progress() ? p.eta_seconds() : -1);
    }
    const grpc::Status status = reader->Finish();
    printer.Finish();
    if (!Ended(*operation) && context.session->interrupted()) return CancelInterrupted(context, *operation);
    if (!Ended(*operation)) {
      Failure failure = status.ok() ? EndedBadly(*operation) : context.session->ToFailure(status);
      failure.metadata["operation"] = operation->id();
      return failure;
    }
  }
  if (operation->state() != v1::OPERATION_STATE_SUCCEEDED) return EndedBadly(*operation);
  return std::nullopt;
}

std::optional<Failure> FinishOperation(Context& context, const std::string& title, bool detach, v1::Operation operation,
                                       const std::function<std::optional<Failure>(Json result)>& show) {
  if (detach) {
    if (context.options.json) {
      PrintJson(OperationJson(operation));
    } else {
      PrintOperation(operation);
    }
    return std::nullopt;
  }
  if (auto failure = WaitForOperation(context, title, &operation)) return failure;
  const Json result = ResultJson(operation);
  if (!result.is_object()) {
    return Failure{
        .code = "INTERNAL", .reason = "RESULT_INVALID", .message = operation.id() + ": its result is no JSON object"};
  }
  Json out = {{"operation", operation.id()}};
  for (const auto& [key, value] : result.items()) {
    if (key != "operation") out[key] = value;
  }
  return show(std::move(out));
}

std::optional<Failure> ReadDataset(const std::string& flag, std::string* dataset, std::string* content) {
  std::error_code error;
  *dataset = flag;
  if (flag.empty() || !std::filesystem::is_regular_file(flag, error)) return std::nullopt;
  if (auto failure = ReadLocalFile(flag, kMaxDatasetBytes, content)) return failure;
  if (content->empty()) {
    return Failure{
        .exit_code = kUsage, .code = "INVALID_ARGUMENT", .reason = "DATASET_EMPTY", .message = flag + ": is empty"};
  }
  *dataset = std::filesystem::path(flag).filename().string();
  return std::nullopt;
}

}  // namespace sage::cli
